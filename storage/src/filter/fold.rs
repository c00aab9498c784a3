//! Constants: template variables, lists and arithmetic that needs no row.

use std::cmp::Ordering;

use super::ast::{Binary, Cmp};
use super::value::{Const, ConstList, Num};
use super::{TemplateValue, Templates};

/// The constant that a template variable stands for.
///
/// # Errors
/// The reason, if there is no such variable or it holds what the language has no constant for.
pub(super) fn template(name: &str, templates: &Templates) -> Result<Const, String> {
    let value = templates.get(name).ok_or_else(|| {
        format!("the value of expression template variable name {{{name}}} is not found")
    })?;
    from_template(value)
        .ok_or_else(|| format!("template variable `{name}` holds null or a number beyond 64 bits"))
}

fn from_template(value: &TemplateValue) -> Option<Const> {
    Some(match value {
        TemplateValue::Bool(value) => Const::Bool(*value),
        TemplateValue::Int(value) => Const::Int(*value),
        TemplateValue::Float(value) => Const::Float(*value),
        TemplateValue::String(value) => Const::Text(value.clone()),
        TemplateValue::Array(items) => {
            Const::List(pack(items.iter().map(from_template).collect::<Option<_>>()?))
        }
        TemplateValue::Json(value) => from_json(value)?,
        TemplateValue::Bytes(bytes) => Const::Bytes(bytes.clone()),
    })
}

fn from_json(value: &serde_json::Value) -> Option<Const> {
    use serde_json::Value;
    Some(match value {
        Value::Null => return None,
        Value::Bool(value) => Const::Bool(*value),
        Value::Number(number) => match (number.as_i64(), number.is_u64()) {
            (Some(int), _) => Const::Int(int),
            (None, true) => return None,
            (None, false) => Const::Float(number.as_f64()?),
        },
        Value::String(text) => Const::Text(text.clone()),
        Value::Array(items) => {
            Const::List(pack(items.iter().map(from_json).collect::<Option<_>>()?))
        }
        Value::Object(_) => Const::Object(value.clone()),
    })
}

/// A list in its packed form, if all elements are integers or all are texts.
pub(super) fn pack(items: Vec<Const>) -> ConstList {
    let int = |item: &Const| match item {
        Const::Int(value) => Some(*value),
        _ => None,
    };
    if let Some(ints) = items.iter().map(int).collect() {
        return ConstList::Ints(ints);
    }
    if items.iter().all(|item| matches!(item, Const::Text(_))) {
        let text = |item| match item {
            Const::Text(text) => Some(text),
            _ => None,
        };
        return ConstList::Texts(items.into_iter().filter_map(text).collect());
    }
    ConstList::Mixed(items)
}

/// The value of `left op right`.
///
/// # Errors
/// The reason, if the operands are no numbers or the result is none of the language's.
pub(super) fn arithmetic(op: Binary, left: &Const, right: &Const) -> Result<Const, String> {
    let (Some(a), Some(b)) = (left.num(), right.num()) else {
        return Err(format!(
            "`{}` cannot be applied to {} and {}",
            op.sign(),
            left.type_name(),
            right.type_name()
        ));
    };
    check_divisor(op, a, b)?;
    match a.apply(op, b) {
        Some(Num::Int(value)) => i64::try_from(value)
            .map(Const::Int)
            .map_err(|_| format!("the result of `{}` does not fit into 64 bits", op.sign())),
        Some(Num::Float(value)) => Ok(Const::Float(value)),
        None => Err(format!("`{}` of these constants has no value", op.sign())),
    }
}

/// Refuses divisors of zero and remainders of other things than integers.
pub(super) fn check_divisor(op: Binary, dividend: Num, divisor: Num) -> Result<(), String> {
    let zero = divisor.compare(Num::Int(0)) == Some(Ordering::Equal);
    match op {
        Binary::Remainder
            if matches!((dividend, divisor), (Num::Float(_), _) | (_, Num::Float(_))) =>
        {
            Err("modulo can only apply on integer types".into())
        }
        Binary::Remainder if zero => Err("modulo by zero".into()),
        Binary::Divide if zero => Err("division by zero".into()),
        Binary::Add
        | Binary::Subtract
        | Binary::Multiply
        | Binary::Divide
        | Binary::Remainder
        | Binary::Power => Ok(()),
        Binary::ShiftLeft | Binary::ShiftRight | Binary::And | Binary::Xor | Binary::Or => {
            Err(format!("the bit operator `{}` is not supported", op.sign()))
        }
    }
}

/// Whether `left op right` holds of two constants; `None` if one of them is NaN.
///
/// # Errors
/// The reason, if the two cannot be compared.
pub(super) fn compare(op: Cmp, left: &Const, right: &Const) -> Result<Option<bool>, String> {
    if let (Some(a), Some(b)) = (left.num(), right.num()) {
        return Ok(a.compare(b).map(|order| op.holds(order)));
    }
    match (left, right) {
        (Const::Text(a), Const::Text(b)) => Ok(Some(op.holds(a.cmp(b)))),
        (Const::Bool(a), Const::Bool(b)) if op.is_equality() => Ok(Some(op.holds(a.cmp(b)))),
        _ => Err(format!(
            "comparisons between {} and {} are not supported",
            left.type_name(),
            right.type_name()
        )),
    }
}

/// The closest of the known names, if one is close enough to be a slip of the finger.
pub(super) fn closest<'n>(name: &str, known: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    /// Longer names are not compared: the cost is the product of the lengths.
    const LONGEST: usize = 64;
    if name.len() > LONGEST {
        return None;
    }
    let allowed = if name.len() <= 3 { 1 } else { 2 };
    known
        .filter(|known| known.len() <= LONGEST)
        .map(|known| (edits(name.as_bytes(), known.as_bytes()), known))
        .filter(|(edits, _)| *edits <= allowed)
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, known)| known)
}

/// Insertions, deletions, replacements and exchanges of neighbours that turn `a` into `b`
/// (the restricted Damerau-Levenshtein distance).
fn edits(a: &[u8], b: &[u8]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let mut cost = (last[j] + usize::from(x != y)).min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *x == b[j - 1] && a[i - 1] == *y {
                cost = cost.min(before[j - 1] + 1);
            }
            row.push(cost);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_of_the_finger_are_recognised() {
        let names = || ["price", "color", "id"].into_iter();
        assert_eq!(closest("prise", names()), Some("price"));
        assert_eq!(closest("colro", names()), Some("color"));
        assert_eq!(closest("colour", names()), Some("color"));
        assert_eq!(closest("weight", names()), None);
        assert_eq!(closest("xy", names()), None);
    }

    #[test]
    fn constants_are_folded_exactly_or_refused() {
        let int = Const::Int;
        assert_eq!(arithmetic(Binary::Divide, &int(7), &int(-2)), Ok(int(-3)));
        assert_eq!(arithmetic(Binary::Remainder, &int(-7), &int(2)), Ok(int(-1)));
        assert_eq!(arithmetic(Binary::Power, &int(2), &int(10)), Ok(int(1024)));
        assert_eq!(arithmetic(Binary::Power, &int(2), &int(-1)), Ok(Const::Float(0.5)));
        assert_eq!(arithmetic(Binary::Add, &int(1), &Const::Float(0.5)), Ok(Const::Float(1.5)));
        for (op, a, b) in [
            (Binary::Add, int(i64::MAX), int(1)),
            (Binary::Divide, int(1), int(0)),
            (Binary::Divide, Const::Float(1.0), Const::Float(0.0)),
            (Binary::Remainder, int(1), int(0)),
            (Binary::Remainder, int(1), Const::Float(2.0)),
            (Binary::And, int(1), int(1)),
            (Binary::Add, int(1), Const::Text("1".into())),
        ] {
            assert!(arithmetic(op, &a, &b).is_err(), "{a} {} {b}", op.sign());
        }
    }
}
