//! Random rows, random filters and random text: the fast filter against the slow one, hints
//! against matches, the printer against the parser.

use proptest::prelude::*;
use serde_json::json;

use super::super::ast::{self, Binary, Cmp, Connective, Expr, Kind, List};
use super::super::lex::Span;
use super::super::lookup::WHATEVER_IT_COSTS;
use super::super::oracle::{Oracle, Row, Val};
use super::super::value::Num;
use super::super::{compile, parse};
use super::{FIELDS, Indexed, batch, num, sample, schema, templates};

fn integer() -> impl Strategy<Value = i64> {
    prop_oneof![4 => -2_i64..4, 1 => Just(127), 1 => Just(128), 1 => Just(1 << 53), 1 => Just((1 << 53) + 1), 1 => Just(i64::MAX), 1 => Just(i64::MIN)]
}

fn double() -> impl Strategy<Value = f64> {
    prop_oneof![
        Just(0.0),
        Just(-0.0),
        Just(0.5),
        Just(1.0),
        Just(0.1),
        Just(2.5),
        Just(-1.5),
        Just(1e300),
        Just(9007199254740992.0)
    ]
}

fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        Just("a".into()),
        Just("ab".into()),
        Just("b%".into()),
        Just("é_".into())
    ]
}

fn json_value() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(|v| json!(v)),
        integer().prop_map(|v| json!(v)),
        double().prop_map(|v| json!(v)),
        word().prop_map(|v| json!(v)),
        Just(json!(u64::MAX)),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(|v| json!(v)),
            proptest::collection::hash_map("[abn]", inner, 0..3).prop_map(|v| json!(v)),
        ]
    })
}

fn object() -> impl Strategy<Value = serde_json::Value> {
    proptest::collection::hash_map("[abn]", json_value(), 0..4).prop_map(|v| json!(v))
}

fn row() -> impl Strategy<Value = Row> {
    let maybe = |strategy: BoxedStrategy<Val>| proptest::option::weighted(0.8, strategy);
    let list = |strategy: BoxedStrategy<Val>| {
        maybe(proptest::collection::vec(strategy, 0..4).prop_map(Val::List).boxed())
    };
    (
        integer().prop_map(num),
        maybe((-128_i64..128).prop_map(num).boxed()),
        maybe((-3_i64..30).prop_map(num).boxed()),
        maybe(
            prop_oneof![Just(0.1_f32), Just(0.5), Just(-0.0), Just(3.0), Just(f32::MAX)]
                .prop_map(Val::Single)
                .boxed(),
        ),
        maybe(double().prop_map(|v| Val::Num(Num::Float(v))).boxed()),
        maybe(word().prop_map(Val::Text).boxed()),
        maybe(any::<bool>().prop_map(Val::Bool).boxed()),
        list(integer().prop_map(num).boxed()),
        list(word().prop_map(Val::Text).boxed()),
        maybe(json_value().prop_map(Val::Json).boxed()),
        maybe(object().prop_map(Val::Json).boxed()),
    )
        .prop_map(|row| {
            let (id, tiny, int, single, double, text, flag, ints, tags, doc, meta) = row;
            let values = [Some(id), tiny, int, single, double, text, flag, ints, tags, doc, meta];
            FIELDS.iter().zip(values).filter_map(|(n, v)| Some(((*n).to_owned(), v?))).collect()
        })
}

fn any_of(choices: &'static [&'static str]) -> impl Strategy<Value = String> + Clone {
    proptest::sample::select(choices).prop_map(str::to_owned)
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

fn number() -> BoxedStrategy<String> {
    prop_oneof![
        integer().prop_map(|v| v.to_string()),
        double().prop_map(|v| format!("{v:?}")),
        any_of(&["{five}", "{half}", "1 + 2", "2 ** 3", "-(1 - 2)", "0x10", "017"]),
    ]
    .boxed()
}

fn literal() -> BoxedStrategy<String> {
    prop_oneof![number(), word().prop_map(|v| quoted(&v)), any_of(&["{name}"])].boxed()
}

fn condition() -> BoxedStrategy<String> {
    let ops = any_of(&["==", "!=", "<", "<=", ">", ">="]);
    let equality = any_of(&["==", "!="]);
    let numbers = any_of(&[
        "id",
        "tiny",
        "int",
        "single",
        "double",
        "ints[1]",
        "array_length(tags)",
        "array_length(doc[\"a\"])",
    ]);
    let whole = any_of(&["id", "tiny", "int", "ints[0]", "array_length(ints)", "n"]);
    let paths = any_of(&[
        "doc",
        "doc[\"a\"]",
        "doc[\"a\"][\"b\"]",
        "doc[0]",
        "n",
        "a",
        "$meta[\"b\"]",
        "a[1]",
        "a[\"n\"]",
    ]);
    let texts = any_of(&["text", "tags[0]", "a", "doc[\"b\"]"]);
    let list = |item: BoxedStrategy<String>| {
        proptest::collection::vec(item, 0..4).prop_map(|items| format!("[{}]", items.join(", ")))
    };
    let ints = || integer().prop_map(|v| v.to_string()).boxed();
    let words = || word().prop_map(|v| quoted(&v)).boxed();
    let not = any_of(&["", "not "]);
    let contains = any_of(&["json_contains", "ARRAY_CONTAINS"]);
    let contains_many = any_of(&["json_contains_all", "array_contains_any"]);
    prop_oneof![
        4 => (numbers.clone(), ops.clone(), number()).prop_map(|(a, op, b)| format!("{a} {op} {b}")),
        2 => (number(), ops.clone(), numbers.clone()).prop_map(|(a, op, b)| format!("{a} {op} {b}")),
        2 => (numbers.clone(), any_of(&["+ 1", "- 2", "* 3", "/ 2", "* 0.5", "+ 1 - 0.5"]), ops.clone(), number())
            .prop_map(|(a, b, op, c)| format!("{a} {b} {op} {c}")),
        1 => (whole, any_of(&["2", "3", "-5"]), ops.clone(), -2_i64..3)
            .prop_map(|(a, by, op, b)| format!("{a} % {by} {op} {b}")),
        2 => (any_of(&["-1 <", "0 <=", "-0.5 <="]), numbers.clone(), any_of(&["< 3", "<= 1e9", "< 0.75"]))
            .prop_map(|(a, b, c)| format!("{a} {b} {c}")),
        1 => (any_of(&["id", "tiny", "int", "ints[0]"]), not.clone(), prop_oneof![list(ints()).boxed(), any_of(&["{list}", "{empty}"]).boxed()])
            .prop_map(|(a, not, list)| format!("{a} {not}in {list}")),
        1 => (any_of(&["single", "double"]), not.clone(), list(number())).prop_map(|(a, not, list)| format!("{a} {not}in {list}")),
        1 => (any_of(&["text", "tags[1]"]), not.clone(), list(words())).prop_map(|(a, not, list)| format!("{a} {not}in {list}")),
        2 => (paths.clone(), not.clone(), prop_oneof![list(literal()).boxed(), any_of(&["{mixed}"]).boxed()])
            .prop_map(|(a, not, list)| format!("{a} {not}in {list}")),
        2 => (any_of(&["text", "tags[0]"]), ops.clone(), words()).prop_map(|(a, op, b)| format!("{a} {op} {b}")),
        2 => (texts, "[ab%_é]{0,4}").prop_map(|(a, b)| format!("{a} like {}", quoted(&b))),
        4 => (paths.clone(), ops.clone(), literal()).prop_map(|(a, op, b)| format!("{a} {op} {b}")),
        1 => (paths.clone(), equality.clone(), any_of(&["true", "{yes}", "false"])).prop_map(|(a, op, b)| format!("{a} {op} {b}")),
        1 => (paths.clone(), equality.clone(), list(literal())).prop_map(|(a, op, b)| format!("{a} {op} {b}")),
        1 => (equality.clone(), list(ints())).prop_map(|(op, b)| format!("ints {op} {b}")),
        1 => (any_of(&["id", "tiny", "int", "single", "double"]), ops.clone(), any_of(&["id", "single", "double"]))
            .prop_map(|(a, op, b)| format!("{a} {op} {b}")),
        2 => (any_of(&["tiny", "text", "flag", "ints", "ints[2]", "doc", "doc[\"a\"]", "n", "a[0]"]), any_of(&["is null", "IS NOT NULL"]))
            .prop_map(|(a, b)| format!("{a} {b}")),
        1 => (any_of(&["doc[\"a\"]", "n", "a[0]", "$meta[\"a\"][\"b\"]"])).prop_map(|a| format!("exists {a}")),
        2 => (contains.clone(), any_of(&["doc", "doc[\"a\"]", "a", "b"]), prop_oneof![literal(), any_of(&["true"]).boxed(), list(literal()).boxed()])
            .prop_map(|(f, a, b)| format!("{f}({a}, {b})")),
        2 => (contains_many.clone(), any_of(&["doc", "doc[\"a\"]", "a", "b"]), list(literal())).prop_map(|(f, a, b)| format!("{f}({a}, {b})")),
        1 => (contains, ints()).prop_map(|(f, b)| format!("{f}(ints, {b})")),
        1 => (contains_many, list(words())).prop_map(|(f, b)| format!("{f}(tags, {b})")),
        1 => any_of(&["flag", "flag == true", "flag != {yes}", "flag in [false]", "n", "a", "doc[\"a\"]", "true", "1 > 2"]),
    ]
    .boxed()
}

fn filter() -> BoxedStrategy<String> {
    condition()
        .prop_recursive(4, 24, 3, |inner| {
            prop_oneof![
                2 => proptest::collection::vec(inner.clone(), 2..4)
                    .prop_map(|terms| format!("({})", terms.join(") and ("))),
                2 => proptest::collection::vec(inner.clone(), 2..4)
                    .prop_map(|terms| format!("({})", terms.join(") || ("))),
                2 => inner.clone().prop_map(|term| format!("not ({term})")),
                1 => (inner, any_of(&["== false", "!= false", "== true"]))
                    .prop_map(|(term, by)| format!("({term}) {by}")),
            ]
        })
        .boxed()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_500))]
    #[test]
    fn fast_filter_agrees_with_slow_filter(rows in proptest::collection::vec(row(), 1..12), filter in filter()) {
        let templates = templates();
        let predicate = match compile(&filter, &schema(), &templates) {
            Ok(predicate) => predicate,
            Err(error) => panic!("{}", error.render(&filter)),
        };
        let fast = predicate.eval(&batch(&rows)).unwrap();
        let expr = parse::parse(&filter).unwrap();
        for (position, row) in (0..).zip(&rows) {
            let oracle = Oracle { fields: &FIELDS, templates: &templates, row };
            prop_assert_eq!(
                fast.contains(position),
                oracle.truth(&expr) == Some(true),
                "{} of {:?}", filter, row
            );
        }
    }

    #[test]
    fn hints_about_keys_never_lose_a_row(rows in proptest::collection::vec(row(), 1..12), filter in filter()) {
        let predicate = compile(&filter, &schema(), &templates()).unwrap();
        let batch = batch(&rows);
        let ids = crate::keys::KeyColumn::new(batch.column(0)).unwrap();
        let (low, high) = predicate.key_range();
        let listed = predicate.values_of("id");
        for row in predicate.eval(&batch).unwrap().iter() {
            let key = ids.get(row as usize);
            prop_assert!(std::ops::RangeBounds::contains(&(low.clone(), high.clone()), &key.to_key()));
            prop_assert!(listed.as_ref().is_none_or(|keys| keys.iter().any(|listed| listed == key)));
        }
    }

    #[test]
    fn no_text_makes_the_compiler_panic(text in "\\PC{0,60}") {
        let _ = compile(&text, &schema(), &templates());
    }

    #[test]
    fn no_row_of_tokens_makes_the_compiler_panic(tokens in proptest::collection::vec(token(), 0..25)) {
        let text = tokens.join(" ");
        match compile(&text, &schema(), &templates()) {
            Ok(predicate) => {
                predicate.eval(&batch(&sample())).unwrap();
            }
            Err(error) => {
                prop_assert!(error.span.end <= text.len());
                prop_assert!(!error.render(&text).is_empty());
            }
        }
    }

    #[test]
    fn printing_with_the_fewest_parentheses_keeps_the_tree(expr in tree()) {
        let text = print(&expr, 0);
        let parsed = parse::parse(&text);
        prop_assert_eq!(parsed.as_ref(), Ok(&expr), "{}", text);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn an_answer_does_not_depend_on_the_indexes(rows in proptest::collection::vec(row(), 1..12), filters in proptest::collection::vec(filter(), 8)) {
        // Most terms are rare then, and some are not.
        let mut rows = rows;
        rows.extend((0..70).map(|id| Row::from([("id".to_owned(), num(id))])));
        let batch = batch(&rows);
        let indexed = Indexed::new(&batch);
        for filter in filters {
            let predicate = compile(&filter, &schema(), &templates()).unwrap();
            let plain = predicate.eval(&batch).unwrap();
            for whatever_it_costs in [true, false] {
                WHATEVER_IT_COSTS.set(whatever_it_costs);
                let found = predicate.eval(&indexed);
                WHATEVER_IT_COSTS.set(true);
                prop_assert_eq!(&found.unwrap(), &plain, "{}", filter);
            }
        }
    }
}

fn token() -> impl Strategy<Value = String> {
    any_of(&[
        "and",
        "or",
        "not",
        "!",
        "in",
        "like",
        "is",
        "null",
        "exists",
        "true",
        "false",
        "==",
        "!=",
        "<",
        "<=",
        ">",
        ">=",
        "=~",
        "=",
        "+",
        "-",
        "*",
        "**",
        "/",
        "%",
        "<<",
        "&",
        "|",
        "~",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        ",",
        "int",
        "flag",
        "text",
        "ints",
        "doc",
        "color",
        "vector",
        "$meta",
        "$",
        "1",
        "0",
        "-1",
        "2.5",
        "'a'",
        "\"b%\"",
        "array_length",
        "json_contains",
        "array_contains_any",
        "text_match",
        "{five}",
        "{list}",
        "{blob}",
        "INTERVAL",
        "ISO",
        "is null",
        "[0]",
        "[\"a\"]",
        "(",
        ")",
    ])
}

/// Expressions in the shape the parser makes them: connectives are flat.
fn tree() -> BoxedStrategy<Expr> {
    let leaf = prop_oneof![
        any_of(&["a", "b", "c"]).prop_map(|name| Kind::Path(ast::Path { name, steps: vec![] })),
        (0_u64..5).prop_map(Kind::Int),
        Just(Kind::Bool(true)),
        word().prop_map(Kind::Text),
    ];
    let expr = |kind| Expr { kind, span: Span::default(), height: 1 };
    leaf.prop_map(expr)
        .prop_recursive(5, 40, 3, move |inner| {
            let boxed = || inner.clone().prop_map(Box::new);
            let binary = proptest::sample::select(vec![
                Binary::Add,
                Binary::Subtract,
                Binary::Multiply,
                Binary::Divide,
                Binary::Remainder,
                Binary::Power,
                Binary::ShiftLeft,
                Binary::ShiftRight,
                Binary::And,
                Binary::Xor,
                Binary::Or,
            ]);
            let cmp = proptest::sample::select(vec![
                Cmp::Equal,
                Cmp::NotEqual,
                Cmp::Less,
                Cmp::LessEqual,
                Cmp::Greater,
                Cmp::GreaterEqual,
            ]);
            prop_oneof![
                boxed().prop_map(Kind::Not),
                boxed().prop_map(Kind::Negate),
                boxed().prop_map(Kind::Complement),
                boxed().prop_map(Kind::Exists),
                (binary, boxed(), boxed()).prop_map(|(op, left, right)| Kind::Binary {
                    op,
                    left,
                    right
                }),
                (cmp, boxed(), boxed()).prop_map(|(op, left, right)| Kind::Compare {
                    op,
                    left,
                    right
                }),
                (any::<bool>(), proptest::collection::vec(inner.clone(), 2..4)).prop_map(
                    |(and, terms)| {
                        let connective = if and { Connective::And } else { Connective::Or };
                        let mut flat = Vec::new();
                        for term in terms {
                            match term.kind {
                                Kind::Logic { connective: same, terms } if same == connective => {
                                    flat.extend(terms);
                                }
                                kind => flat.push(Expr { kind, ..term }),
                            }
                        }
                        Kind::Logic { connective, terms: flat }
                    }
                ),
                (boxed(), any::<bool>()).prop_map(|(value, negated)| {
                    let list = Kind::List(List::Ints(vec![1, -2]));
                    let list = Box::new(Expr { kind: list, span: Span::default(), height: 1 });
                    Kind::In { value, list, negated }
                }),
                boxed().prop_map(|value| {
                    let pattern = Kind::Text("x%".into());
                    let pattern =
                        Box::new(Expr { kind: pattern, span: Span::default(), height: 1 });
                    Kind::Like { value, pattern }
                }),
                (boxed(), boxed(), boxed()).prop_map(|(low, value, high)| Kind::Range {
                    low,
                    low_op: Cmp::Less,
                    value,
                    high_op: Cmp::LessEqual,
                    high
                }),
            ]
            .prop_map(expr)
        })
        .boxed()
}

/// Writes an expression with parentheses only where an operand binds more loosely than its place
/// asks for.
fn print(expr: &Expr, place: u8) -> String {
    let sign = |op: &Cmp| match op {
        Cmp::Equal => "==",
        Cmp::NotEqual => "!=",
        Cmp::Less => "<",
        Cmp::LessEqual => "<=",
        Cmp::Greater => ">",
        Cmp::GreaterEqual => ">=",
    };
    let (power, text) = match &expr.kind {
        Kind::Path(path) => (99, path.name.clone()),
        Kind::Int(value) => (99, value.to_string()),
        Kind::Bool(_) => (99, "true".into()),
        Kind::Text(text) => (99, quoted(text)),
        Kind::List(_) => (99, "[1, -2]".into()),
        Kind::Logic { connective, terms } => {
            let (power, word) = match connective {
                Connective::Or => (1, " or "),
                Connective::And => (2, " and "),
            };
            let terms: Vec<_> = terms.iter().map(|term| print(term, power + 1)).collect();
            (power, terms.join(word))
        }
        Kind::Binary { op, left, right } => {
            let power = match op {
                Binary::Or => 3,
                Binary::Xor => 4,
                Binary::And => 5,
                Binary::ShiftLeft | Binary::ShiftRight => 9,
                Binary::Add | Binary::Subtract => 10,
                Binary::Multiply | Binary::Divide | Binary::Remainder => 11,
                Binary::Power => 13,
            };
            (power, format!("{} {} {}", print(left, power), op.sign(), print(right, power + 1)))
        }
        Kind::Compare { op, left, right } => {
            let power = if op.is_equality() { 6 } else { 7 };
            // A comparison on the left of another one would read as a range.
            let left_place = if power == 7 { 8 } else { 6 };
            (power, format!("{} {} {}", print(left, left_place), sign(op), print(right, power + 1)))
        }
        Kind::Range { low, value, high, .. } => {
            (7, format!("{} < {} <= {}", print(low, 8), print(value, 8), print(high, 8)))
        }
        Kind::In { value, list, negated } => {
            let word = if *negated { "not in" } else { "in" };
            (8, format!("{} {word} {}", print(value, 8), print(list, 99)))
        }
        Kind::Like { value, .. } => (15, format!("{} like \"x%\"", print(value, 15))),
        // `not` takes in an equality to its right, so it binds less than an operand of one must.
        Kind::Not(inner) => (5, format!("not {}", print(inner, 6))),
        Kind::Negate(inner) => (12, format!("- {}", print(inner, 12))),
        Kind::Complement(inner) => (12, format!("~ {}", print(inner, 12))),
        Kind::Exists(inner) => (16, format!("exists {}", print(inner, 16))),
        other => panic!("{other:?} is not generated"),
    };
    if power < place { format!("({text})") } else { text }
}
