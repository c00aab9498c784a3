//! Patterns of `like`: `%` is any run of characters, `_` any one, a backslash takes the next
//! character as it is.

use memchr::memmem::Finder;

/// A compiled pattern.
#[derive(Clone, Debug)]
pub(super) struct Pattern {
    /// What stands between the `%` signs.
    segments: Vec<Segment>,
    /// Whether the text begins with the first segment, there being no `%` before it.
    from_start: bool,
    /// Whether the text ends with the last segment.
    to_end: bool,
}

/// A run of literal text and single wildcards, not empty.
#[derive(Clone, Debug)]
enum Segment {
    Plain(Box<Finder<'static>>),
    /// With at least one `_`.
    Wild {
        pieces: Vec<Piece>,
        chars: usize,
    },
}

#[derive(Clone, Debug)]
enum Piece {
    Text(String),
    /// That many characters, whatever they are.
    Any(usize),
}

impl Pattern {
    pub(super) fn new(pattern: &str) -> Self {
        let mut segments = Vec::new();
        let mut pieces = Vec::new();
        let mut from_start = true;
        let mut to_end = true;
        let mut chars = pattern.chars();
        while let Some(char) = chars.next() {
            to_end = true;
            match char {
                '%' => {
                    from_start &= !(segments.is_empty() && pieces.is_empty());
                    to_end = false;
                    segments.extend(Segment::new(std::mem::take(&mut pieces)));
                }
                '_' => match pieces.last_mut() {
                    Some(Piece::Any(count)) => *count += 1,
                    _ => pieces.push(Piece::Any(1)),
                },
                // A backslash at the very end stands for itself.
                '\\' => push(&mut pieces, chars.next().unwrap_or('\\')),
                other => push(&mut pieces, other),
            }
        }
        segments.extend(Segment::new(pieces));
        Self { segments, from_start, to_end }
    }

    /// What every text that fits begins with, and whether every text that begins so fits.
    pub(super) fn prefix(&self) -> (&str, bool) {
        match self.segments.as_slice() {
            [first, others @ ..] if self.from_start => {
                let plain = matches!(first, Segment::Plain(_));
                (first.pieces().next().unwrap_or(""), plain && others.is_empty() && !self.to_end)
            }
            _ => ("", false),
        }
    }

    /// What every text that fits contains; empty where a wildcard stands.
    pub(super) fn literals(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().flat_map(Segment::pieces)
    }

    /// Whether the whole of `text` fits.
    pub(super) fn matches(&self, text: &str) -> bool {
        let mut segments = self.segments.as_slice();
        let mut rest = text;
        if self.from_start {
            let Some((first, others)) = segments.split_first() else {
                return text.is_empty();
            };
            let Some(after) = first.strip(rest) else { return false };
            if others.is_empty() && self.to_end {
                return after.is_empty();
            }
            rest = after;
            segments = others;
        }
        let last = if self.to_end { segments.split_last() } else { None };
        // The leftmost place for each segment leaves the most room for those after it.
        for segment in last.map_or(segments, |(_, middle)| middle) {
            match segment.find(rest) {
                Some(after) => rest = after,
                None => return false,
            }
        }
        last.is_none_or(|(last, _)| last.ends(rest))
    }
}

fn push(pieces: &mut Vec<Piece>, char: char) {
    match pieces.last_mut() {
        Some(Piece::Text(text)) => text.push(char),
        _ => pieces.push(Piece::Text(char.into())),
    }
}

impl Segment {
    fn new(pieces: Vec<Piece>) -> Option<Self> {
        match pieces.as_slice() {
            [] => None,
            [Piece::Text(text)] => Some(Self::Plain(Box::new(Finder::new(text).into_owned()))),
            _ => {
                let chars = pieces
                    .iter()
                    .map(|piece| match piece {
                        Piece::Text(text) => text.chars().count(),
                        Piece::Any(count) => *count,
                    })
                    .sum();
                Some(Self::Wild { pieces, chars })
            }
        }
    }

    /// The literal texts in order; empty where a wildcard stands.
    fn pieces(&self) -> impl Iterator<Item = &str> {
        let (plain, wild) = match self {
            // Made of a text.
            Self::Plain(finder) => (std::str::from_utf8(finder.needle()).ok(), [].as_slice()),
            Self::Wild { pieces, .. } => (None, pieces.as_slice()),
        };
        plain.into_iter().chain(wild.iter().map(|piece| match piece {
            Piece::Text(text) => text.as_str(),
            Piece::Any(_) => "",
        }))
    }

    /// What follows the segment if the text begins with it.
    fn strip<'t>(&self, text: &'t str) -> Option<&'t str> {
        match self {
            Self::Plain(finder) => {
                text.as_bytes().starts_with(finder.needle()).then(|| &text[finder.needle().len()..])
            }
            Self::Wild { pieces, .. } => pieces.iter().try_fold(text, |rest, piece| match piece {
                Piece::Text(text) => rest.strip_prefix(text.as_str()),
                Piece::Any(count) => {
                    let (at, char) = rest.char_indices().nth(count - 1)?;
                    Some(&rest[at + char.len_utf8()..])
                }
            }),
        }
    }

    /// What follows the segment's leftmost occurrence.
    fn find<'t>(&self, text: &'t str) -> Option<&'t str> {
        match self {
            Self::Plain(finder) => {
                finder.find(text.as_bytes()).map(|at| &text[at + finder.needle().len()..])
            }
            Self::Wild { .. } => text.char_indices().find_map(|(at, _)| self.strip(&text[at..])),
        }
    }

    fn ends(&self, text: &str) -> bool {
        match self {
            Self::Plain(finder) => text.as_bytes().ends_with(finder.needle()),
            Self::Wild { chars, .. } => text
                .char_indices()
                .rev()
                .nth(chars - 1)
                .is_some_and(|(at, _)| self.strip(&text[at..]).is_some_and(str::is_empty)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The textbook definition, by recursion over both strings.
    fn slow(pattern: &[char], text: &[char]) -> bool {
        match pattern {
            [] => text.is_empty(),
            ['%', rest @ ..] => (0..=text.len()).any(|skip| slow(rest, &text[skip..])),
            ['_', rest @ ..] => !text.is_empty() && slow(rest, &text[1..]),
            ['\\', escaped, rest @ ..] => text.first() == Some(escaped) && slow(rest, &text[1..]),
            [char, rest @ ..] => text.first() == Some(char) && slow(rest, &text[1..]),
        }
    }

    #[test]
    fn patterns_find_prefixes_suffixes_infixes_and_themselves() {
        for (pattern, yes, no) in [
            ("ab%", "abc", "xab"),
            ("%ab", "xab", "abx"),
            ("%ab%", "xabx", "axb"),
            ("ab", "ab", "abc"),
            ("a%b", "axxb", "axxbx"),
            ("a_c", "a中c", "abbc"),
            ("%a_c", "xxabc", "abcx"),
            (r"50\%", "50%", "500"),
            (r"a\_b", "a_b", "axb"),
            (r"a\\b", r"a\b", "ab"),
            ("%", "", "\0never"),
            ("", "", "x"),
            ("aa%aa", "aaaa", "aaa"),
            ("\\", "\\", ""),
            ("a.c", "a.c", "abc"),
            ("%\n%", "a\nb", "ab"),
        ] {
            let compiled = Pattern::new(pattern);
            assert!(compiled.matches(yes), "{pattern:?} should match {yes:?}");
            assert!(no.starts_with('\0') || !compiled.matches(no), "{pattern:?} matched {no:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn the_matcher_agrees_with_the_definition(pattern in "[ab%_\\\\é]{0,8}", text in "[abé%_]{0,10}") {
            let chars = |text: &str| text.chars().collect::<Vec<_>>();
            prop_assert_eq!(
                Pattern::new(&pattern).matches(&text),
                slow(&chars(&pattern), &chars(&text)),
                "{} on {}", pattern, text
            );
        }
    }
}
