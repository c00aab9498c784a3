//! Text to token ids, exactly as the reference libraries cut and frame it.
//!
//! Truncation and padding that a `tokenizer.json` may carry are switched off: a text is cut into
//! pieces once, and the pieces are framed and shortened here, because the three callers shorten
//! differently (a text keeps its beginning, a pair its query).

use std::path::Path;

use tokenizers::{Encoding, Token, Tokenizer};

use crate::Error;

/// A tokenizer file is some 17 MB at most (XLM-R's 250,002 pieces).
const MAX_FILE_BYTES: u64 = 256 << 20;

/// Framed token ids of a text or a pair.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Sequence {
    pub(crate) ids: Vec<u32>,
    /// Tokens from here on have type 1 (the second text of a BERT pair).
    pub(crate) second: usize,
}

/// The ids around and between texts, learnt from the tokenizer's own template.
#[derive(Debug, Clone, Default)]
pub(crate) struct Specials {
    single: [Vec<u32>; 2],
    pair: [Vec<u32>; 3],
    /// Specials before the first token of type 1 in a pair, counted without the texts.
    pair_types: Option<usize>,
    /// Ids that BGE-M3 gives no lexical weight: beginning, end, padding, unknown.
    pub(crate) without_weight: Vec<u32>,
}

/// The tokenizer of one model.
pub(crate) struct TextTokenizer {
    model: String,
    tokenizer: Tokenizer,
    specials: Specials,
    /// Ids must be below this, or the word table has no row for them.
    vocabulary: usize,
    lowercase: bool,
}

impl TextTokenizer {
    /// Loads `tokenizer.json` of a model folder whose word table has `vocabulary` rows.
    pub(crate) fn load(
        model: &str,
        dir: &Path,
        vocabulary: usize,
        lowercase: bool,
    ) -> Result<Self, Error> {
        let path = dir.join("tokenizer.json");
        let load = |detail: String| Error::Load { path: path.clone(), detail };
        let bytes = fs_err::metadata(&path).map_err(|error| load(error.to_string()))?.len();
        if bytes > MAX_FILE_BYTES {
            return Err(load(format!("it has {bytes} bytes, expected {MAX_FILE_BYTES} at most")));
        }
        let mut tokenizer = Tokenizer::from_file(&path).map_err(|error| load(error.to_string()))?;
        tokenizer.with_truncation(None).map_err(|error| load(error.to_string()))?;
        tokenizer.with_padding(None);
        let specials = specials(&tokenizer).map_err(|detail| load(detail.to_owned()))?;
        let highest = specials.single.iter().chain(&specials.pair).flatten().max();
        if let Some(id) = highest.filter(|id| **id as usize >= vocabulary) {
            return Err(load(format!(
                "a special token has id {id}, but the model has {vocabulary} word vectors"
            )));
        }
        Ok(Self { model: model.to_owned(), tokenizer, specials, vocabulary, lowercase })
    }

    /// The ids around texts.
    pub(crate) fn specials(&self) -> &Specials {
        &self.specials
    }

    /// `prompt + text` in its frame, at most `max_length` ids, the end cut off.
    pub(crate) fn text(
        &self,
        prompt: &str,
        text: &str,
        max_length: usize,
    ) -> Result<Sequence, Error> {
        let [before, after] = &self.specials.single;
        let room = max_length.saturating_sub(before.len() + after.len());
        let pieces = if prompt.is_empty() {
            self.pieces(text, room)?
        } else {
            self.pieces(&[prompt, text].concat(), room)?
        };
        let ids = [before.as_slice(), &pieces, after].concat();
        Ok(Sequence { second: ids.len(), ids })
    }

    /// A query's pieces for [`TextTokenizer::pair`]: at most three quarters of `max_length`, as
    /// FlagEmbedding leaves room for the document.
    pub(crate) fn query(&self, query: &str, max_length: usize) -> Result<Vec<u32>, Error> {
        let frame: usize = self.specials.pair.iter().map(Vec::len).sum();
        let most =
            (max_length / 4 * 3 + max_length % 4 * 3 / 4).min(max_length.saturating_sub(frame));
        self.pieces(query, most)
    }

    /// A query and a document in their frame, at most `max_length` ids; only the document is cut.
    pub(crate) fn pair(
        &self,
        query: &[u32],
        document: &str,
        max_length: usize,
    ) -> Result<Sequence, Error> {
        let [before, between, after] = &self.specials.pair;
        let frame = before.len() + between.len() + after.len();
        let pieces = self.pieces(document, max_length.saturating_sub(frame + query.len()))?;
        let ids = [before.as_slice(), query, between, &pieces, after].concat();
        let second = self.specials.pair_types.map_or(ids.len(), |at| at + query.len());
        Ok(Sequence { ids, second })
    }

    /// What an id stands for, as the vocabulary writes it.
    pub(crate) fn piece(&self, id: u32) -> String {
        self.tokenizer.id_to_token(id).unwrap_or_default()
    }

    /// All ids of `prompt + text` in its frame.
    pub(crate) fn whole(&self, prompt: &str, text: &str) -> Result<Sequence, Error> {
        self.text(prompt, text, usize::MAX)
    }

    /// The first `most` pieces of a text, without specials.
    fn pieces(&self, text: &str, most: usize) -> Result<Vec<u32>, Error> {
        let tokenize = |detail: String| Error::Tokenize { model: self.model.clone(), detail };
        let lowered;
        let text = if self.lowercase {
            lowered = text.to_lowercase();
            &lowered
        } else {
            text
        };
        let encoding =
            self.tokenizer.encode_fast(text, false).map_err(|error| tokenize(error.to_string()))?;
        let ids = &encoding.get_ids()[..encoding.len().min(most)];
        match ids.iter().find(|id| **id as usize >= self.vocabulary) {
            None => Ok(ids.to_vec()),
            Some(id) => Err(tokenize(format!(
                "it gives token id {id}, but the model has {} word vectors; tokenizer.json and \
                 the weights are of different models",
                self.vocabulary
            ))),
        }
    }
}

/// Frames marker tokens and looks where they come out.
fn specials(tokenizer: &Tokenizer) -> Result<Specials, &'static str> {
    /// No vocabulary reaches these ids.
    const MARKERS: [u32; 2] = [u32::MAX, u32::MAX - 1];
    const REASON: &str = "its post-processor does not frame texts in a way that is understood";
    let marker = |id: u32| Encoding::from_tokens(vec![Token::new(id, String::new(), (0, 0))], 0);
    let [first, second] = MARKERS;
    let frame = |pair: Option<Encoding>| {
        tokenizer.post_process(marker(first), pair, true).map_err(|_| REASON)
    };
    let at = |ids: &[u32], id: u32| ids.iter().position(|&found| found == id).ok_or(REASON);

    let single = frame(None)?;
    let ids = single.get_ids();
    let text = at(ids, first)?;
    let pair = frame(Some(marker(second)))?;
    let pair_ids = pair.get_ids();
    let (query, document) = (at(pair_ids, first)?, at(pair_ids, second)?);
    if document < query {
        return Err(REASON);
    }
    // The two markers themselves are not specials.
    let pair_types =
        pair.get_type_ids().iter().position(|&kind| kind == 1).filter(|&at| at > query);
    let without_weight = ["<s>", "</s>", "<pad>", "<unk>"]
        .iter()
        .filter_map(|token| tokenizer.token_to_id(token))
        .collect();
    Ok(Specials {
        single: [ids[..text].to_vec(), ids[text + 1..].to_vec()],
        pair: [
            pair_ids[..query].to_vec(),
            pair_ids[query + 1..document].to_vec(),
            pair_ids[document + 1..].to_vec(),
        ],
        pair_types: pair_types.map(|at| at - 1),
        without_weight,
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde::Deserialize;
    use serde::de::DeserializeOwned;

    use super::*;

    fn golden_dir() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/embedding-golden")
    }

    fn golden<T: DeserializeOwned>(model: &str) -> T {
        let path = golden_dir().join(format!("{model}.golden.json"));
        serde_json::from_slice(&fs_err::read(path).unwrap()).unwrap()
    }

    fn tokenizer(model: &str) -> TextTokenizer {
        TextTokenizer::load(model, &golden_dir().join(model), 4014, false).unwrap()
    }

    #[derive(Deserialize)]
    struct Texts {
        sentences: Vec<String>,
        input_ids: Vec<Vec<u32>>,
    }

    #[test]
    fn ids_are_those_of_the_reference() {
        let golden: Texts = golden("tiny-bge-m3");
        let tokenizer = tokenizer("tiny-bge-m3");
        for (text, ids) in golden.sentences.iter().zip(&golden.input_ids) {
            assert_eq!(&tokenizer.text("", text, 512).unwrap().ids, ids);
            let cut = tokenizer.text("", text, 8).unwrap().ids;
            let mut expected = ids[..ids.len().min(8)].to_vec();
            expected[ids.len().min(8) - 1] = 2;
            assert_eq!(cut, expected, "the end is cut off, </s> stays");
        }
    }

    /// A text, the number of its ids, and their FNV-1a.
    #[derive(Deserialize)]
    struct Cut(String, usize, u32);

    #[test]
    fn the_whole_vocabulary_of_xlm_roberta_gives_the_ids_of_the_reference_in_every_script() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let models = std::env::var_os("ELANUS_MODEL_DIR")
            .map_or_else(|| here.join("../.models"), PathBuf::from);
        let dir = models.join("xlm-roberta-tokenizer");
        if !dir.exists() {
            println!("NOT RUN: {} is absent", dir.display());
            return;
        }
        let tokenizer = TextTokenizer::load("xlm-roberta", &dir, 250_002, false).unwrap();
        let golden = fs_err::read(here.join("tests/data/xlm-roberta.tokens.json")).unwrap();
        let golden: Vec<Cut> = serde_json::from_slice(&golden).unwrap();
        assert!(golden.len() > 1000);
        for Cut(text, len, expected) in golden {
            let ids = tokenizer.whole("", &text).unwrap().ids;
            let hash = ids
                .iter()
                .flat_map(|id| id.to_le_bytes())
                .fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
            assert_eq!((ids.len(), hash), (len, expected), "{text:?}: {ids:?}");
        }
    }

    #[derive(Deserialize)]
    struct Run {
        max_length: usize,
        input_ids: Vec<Vec<u32>>,
    }

    #[derive(Deserialize)]
    struct Pairs {
        pairs: Vec<[String; 2]>,
        runs: Vec<Run>,
    }

    #[test]
    fn pairs_are_framed_and_cut_as_flagembedding_does() {
        let golden: Pairs = golden("tiny-reranker");
        let tokenizer = tokenizer("tiny-reranker");
        for run in &golden.runs {
            for ([query, document], ids) in golden.pairs.iter().zip(&run.input_ids) {
                let query = tokenizer.query(query, run.max_length).unwrap();
                let pair = tokenizer.pair(&query, document, run.max_length).unwrap();
                assert_eq!(&pair.ids, ids);
            }
        }
    }

    #[test]
    fn a_pair_never_exceeds_its_length_however_short() {
        let tokenizer = tokenizer("tiny-reranker");
        let long = "retrieval ".repeat(50);
        for max_length in 8..40 {
            let query = tokenizer.query(&long, max_length).unwrap();
            let pair = tokenizer.pair(&query, &long, max_length).unwrap();
            assert_eq!(pair.ids.len(), max_length);
        }
    }

    #[test]
    fn ids_beyond_the_word_table_are_an_error_that_names_both() {
        let dir = golden_dir().join("tiny-bge-m3");
        let small = TextTokenizer::load("tiny", &dir, 100, false).unwrap();
        let error = small.text("", "retrieval", 512).unwrap_err().to_string();
        assert!(error.contains("100 word vectors"), "{error}");
        assert!(TextTokenizer::load("tiny", &dir, 2, false).is_err());
    }
}
