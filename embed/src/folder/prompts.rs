//! What is put before a text, because the model was trained with it.
//!
//! sentence-transformers lets a folder say so (`config_sentence_transformers.json`); families that
//! are older than that say it on their model card only, so they are in a table here. What a
//! folder declares goes before the table, and what a request asks for before both.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;

use super::read_json;
use crate::Error;

/// Put before texts that are stored, and before texts that are searched for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Prompts {
    pub(super) insert: String,
    pub(super) search: String,
}

#[derive(Deserialize, Default)]
struct Declared {
    #[serde(default)]
    prompts: HashMap<String, Option<String>>,
    default_prompt_name: Option<String>,
}

/// The prompts of the model `name` in the folder `dir`.
pub(super) fn prompts(name: &str, dir: &Path) -> Result<Prompts, Error> {
    let declared: Declared =
        read_json(&dir.join("config_sentence_transformers.json"))?.unwrap_or_default();
    // A folder may list prompts without words: sentence-transformers writes those by default.
    if declared.prompts.values().flatten().all(String::is_empty) {
        return Ok(of_family(name));
    }
    let find = |names: &[&str]| {
        let default = declared.default_prompt_name.as_deref();
        let mut names = names.iter().copied().chain(default);
        names.find_map(|name| declared.prompts.get(name)).cloned().flatten().unwrap_or_default()
    };
    Ok(Prompts { insert: find(&["document", "passage", "corpus"]), search: find(&["query"]) })
}

/// The prompts of families that declare them on their model cards only, by the model's own name
/// (without its organisation).
fn of_family(name: &str) -> Prompts {
    /// Beginning of the name, prompt of a stored text, prompt of a searched text. The first
    /// that fits counts.
    const FAMILIES: [(&str, &str, &str); 19] = [
        (
            "multilingual-e5-large-instruct",
            "",
            "Instruct: Given a web search query, retrieve relevant passages that answer the query\n\
             Query: ",
        ),
        ("multilingual-e5-", "passage: ", "query: "),
        ("e5-small", "passage: ", "query: "),
        ("e5-base", "passage: ", "query: "),
        ("e5-large", "passage: ", "query: "),
        ("bge-small-en", "", BGE_EN),
        ("bge-base-en", "", BGE_EN),
        ("bge-large-en", "", BGE_EN),
        ("bge-small-zh", "", BGE_ZH),
        ("bge-base-zh", "", BGE_ZH),
        ("bge-large-zh", "", BGE_ZH),
        // The second versions were trained without.
        ("piccolo-large-zh-v2", "", ""),
        ("piccolo-base-zh", PICCOLO[0], PICCOLO[1]),
        ("piccolo-large-zh", PICCOLO[0], PICCOLO[1]),
        ("stella-base-zh-v", "", ""),
        ("stella-large-zh-v", "", ""),
        ("stella-base-zh", PICCOLO[0], PICCOLO[1]),
        ("stella-large-zh", PICCOLO[0], PICCOLO[1]),
        ("snowflake-arctic-embed-l-v2", "", "query: "),
    ];
    const BGE_EN: &str = "Represent this sentence for searching relevant passages: ";
    const BGE_ZH: &str = "为这个句子生成表示以用于检索相关文章：";
    const PICCOLO: [&str; 2] = ["结果: ", "查询: "];
    let own = name.rsplit('/').next().unwrap_or(name).to_ascii_lowercase();
    let family = FAMILIES.iter().find(|(beginning, ..)| own.starts_with(beginning));
    family.map_or_else(Prompts::default, |(_, insert, search)| Prompts {
        insert: (*insert).to_owned(),
        search: (*search).to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: &str, declared: &str) -> (String, String) {
        let dir = tempfile::tempdir().unwrap();
        fs_err::write(dir.path().join("config_sentence_transformers.json"), declared).unwrap();
        let Prompts { insert, search } = prompts(name, dir.path()).unwrap();
        (insert, search)
    }

    fn pair(insert: &str, search: &str) -> (String, String) {
        (insert.to_owned(), search.to_owned())
    }

    #[test]
    fn declared_prompts_belong_to_documents_and_queries() {
        let prompts = r#"{"prompts": {"query": "query: ", "passage": "passage: "}}"#;
        assert_eq!(with("org/name", prompts), pair("passage: ", "query: "));
        let default = r#"{"prompts": {"all": "text: "}, "default_prompt_name": "all"}"#;
        assert_eq!(with("org/name", default), pair("text: ", "text: "));
        let none = r#"{"prompts": {}, "default_prompt_name": null}"#;
        assert_eq!(with("org/name", none), pair("", ""));
    }

    #[test]
    fn a_family_that_declares_nothing_has_the_prompts_of_its_model_card() {
        for none in ["{}", r#"{"prompts": {"query": "", "document": ""}}"#] {
            assert_eq!(with("intfloat/multilingual-e5-base", none), pair("passage: ", "query: "));
            let (insert, search) = with("BAAI/bge-large-en-v1.5", none);
            assert!(insert.is_empty() && search.starts_with("Represent this"), "{search}");
            let (insert, search) = with("BAAI/BGE-small-zh-v1.5", none);
            assert!(insert.is_empty() && search.ends_with("："), "{search}");
            assert_eq!(with("sensenova/piccolo-base-zh", none), pair("结果: ", "查询: "));
            for without in ["BAAI/bge-m3", "infgrad/stella-base-zh-v2", "thenlper/gte-base"] {
                assert_eq!(with(without, none), pair("", ""));
            }
        }
    }

    #[test]
    fn what_a_folder_declares_goes_before_the_table() {
        let own = r#"{"prompts": {"query": "Q "}}"#;
        assert_eq!(with("intfloat/e5-base-v2", own), pair("", "Q "));
    }
}
