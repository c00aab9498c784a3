//! Constants, numbers and their exact comparison.
//!
//! Integers and floats are compared by their mathematical values: no integer is rounded to a
//! float on the way. A constant compared with a typed column becomes a comparison in the column's
//! own type ([`Native`]), or turns out to be the same for all rows.

use std::cmp::Ordering;

use super::ast::{Binary, Cmp};

/// A constant of the language.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Const {
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    List(ConstList),
    /// A JSON object, which only a template can bring.
    Object(serde_json::Value),
    Bytes(bytes::Bytes),
}

/// A list of constants; homogeneous ones are packed.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum ConstList {
    Ints(Vec<i64>),
    Texts(Vec<String>),
    Mixed(Vec<Const>),
}

impl Const {
    /// What messages call the constant's type.
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Self::Bool(_) => "Bool",
            Self::Int(_) => "Int64",
            Self::Float(_) => "Double",
            Self::Text(_) => "VarChar",
            Self::List(_) => "Array",
            Self::Object(_) => "JSON",
            Self::Bytes(_) => "Bytes",
        }
    }

    /// The number, if this is one.
    pub(super) fn num(&self) -> Option<Num> {
        match self {
            Self::Int(value) => Some(Num::Int(i128::from(*value))),
            Self::Float(value) => Some(Num::Float(*value)),
            Self::Bool(_) | Self::Text(_) | Self::List(_) | Self::Object(_) | Self::Bytes(_) => {
                None
            }
        }
    }

    /// The JSON value that this constant equals; `None` for bytes and for floats that JSON lacks.
    pub(super) fn to_json(&self) -> Option<serde_json::Value> {
        use serde_json::Value;
        Some(match self {
            Self::Bool(value) => Value::Bool(*value),
            Self::Int(value) => Value::from(*value),
            Self::Float(value) => Value::Number(serde_json::Number::from_f64(*value)?),
            Self::Text(value) => Value::String(value.clone()),
            Self::List(list) => {
                Value::Array(list.iter().map(|item| item.to_json()).collect::<Option<_>>()?)
            }
            Self::Object(value) => value.clone(),
            Self::Bytes(_) => return None,
        })
    }
}

/// For messages: as the user would write it.
impl std::fmt::Display for Const {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bool(value) => write!(f, "{value}"),
            Self::Int(value) => write!(f, "{value}"),
            Self::Float(value) => write!(f, "{value:?}"),
            Self::Text(value) => f.write_str(value),
            Self::List(list) => write!(f, "a list of {} elements", list.len()),
            Self::Object(_) => f.write_str("a JSON object"),
            Self::Bytes(bytes) => write!(f, "{} bytes", bytes.len()),
        }
    }
}

impl ConstList {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Ints(ints) => ints.len(),
            Self::Texts(texts) => texts.len(),
            Self::Mixed(items) => items.len(),
        }
    }

    /// Copies of the elements as constants of their own.
    pub(super) fn iter(&self) -> Box<dyn Iterator<Item = Const> + '_> {
        match self {
            Self::Ints(ints) => Box::new(ints.iter().map(|value| Const::Int(*value))),
            Self::Texts(texts) => Box::new(texts.iter().map(|text| Const::Text(text.clone()))),
            Self::Mixed(items) => Box::new(items.iter().cloned()),
        }
    }
}

/// A number: integers wide enough for JSON's `u64` and for sums of 64-bit numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Num {
    Int(i128),
    Float(f64),
}

impl Num {
    /// Mathematical order; `None` when either is NaN.
    pub(super) fn compare(self, other: Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Int(a), Self::Int(b)) => Some(a.cmp(&b)),
            (Self::Float(a), Self::Float(b)) => a.partial_cmp(&b),
            (Self::Int(a), Self::Float(b)) => int_with_float(a, b),
            (Self::Float(a), Self::Int(b)) => int_with_float(b, a).map(Ordering::reverse),
        }
    }

    /// Both integers: integer arithmetic, division truncating; else that of doubles. `None` when
    /// the result is no number: overflow, division by zero, NaN.
    pub(super) fn apply(self, op: Binary, other: Self) -> Option<Self> {
        if let (Self::Int(a), Self::Int(b)) = (self, other) {
            return match op {
                Binary::Add => a.checked_add(b),
                Binary::Subtract => a.checked_sub(b),
                Binary::Multiply => a.checked_mul(b),
                Binary::Divide => a.checked_div(b),
                Binary::Remainder => a.checked_rem(b),
                Binary::Power => match u32::try_from(b).ok().and_then(|b| a.checked_pow(b)) {
                    Some(power) => Some(power),
                    None => return float((a as f64).powf(b as f64)),
                },
                Binary::ShiftLeft | Binary::ShiftRight | Binary::And | Binary::Xor | Binary::Or => {
                    None
                }
            }
            .map(Self::Int);
        }
        let (a, b) = (self.as_f64(), other.as_f64());
        match op {
            Binary::Add => float(a + b),
            Binary::Subtract => float(a - b),
            Binary::Multiply => float(a * b),
            Binary::Divide if b == 0.0 => None,
            Binary::Divide => float(a / b),
            Binary::Power => float(a.powf(b)),
            Binary::Remainder
            | Binary::ShiftLeft
            | Binary::ShiftRight
            | Binary::And
            | Binary::Xor
            | Binary::Or => None,
        }
    }

    fn as_f64(self) -> f64 {
        match self {
            Self::Int(value) => value as f64,
            Self::Float(value) => value,
        }
    }

    /// One spelling per value, for sets: a float that is a 64-bit integer becomes that integer.
    pub(super) fn canonical(self) -> Self {
        match self {
            Self::Float(value) => match exact_int(value) {
                Some(int) if i64::try_from(int).is_ok() => Self::Int(int),
                _ => self,
            },
            Self::Int(value) if i64::try_from(value).is_err() => {
                // Beyond 64 bits only JSON's u64 occur; they meet floats of the same value.
                match int_with_float(value, value as f64) {
                    Some(Ordering::Equal) => Self::Float(value as f64),
                    _ => self,
                }
            }
            Self::Int(_) => self,
        }
    }
}

fn float(value: f64) -> Option<Num> {
    (!value.is_nan()).then_some(Num::Float(value))
}

/// The value as an integer, if it is one below 2¹²⁶.
fn exact_int(value: f64) -> Option<i128> {
    let limit = 2_f64.powi(126);
    (value.trunc() == value && value.abs() < limit).then_some(value as i128)
}

fn int_with_float(int: i128, float: f64) -> Option<Ordering> {
    if float.is_nan() {
        return None;
    }
    if float >= 2_f64.powi(127) {
        return Some(Ordering::Less);
    }
    if float < -(2_f64.powi(127)) {
        return Some(Ordering::Greater);
    }
    // Within i128 now, so truncation is exact; the fraction breaks the tie.
    let whole = float.trunc();
    let fraction = float - whole;
    Some(
        int.cmp(&(whole as i128))
            .then_with(|| 0.0_f64.partial_cmp(&fraction).unwrap_or(Ordering::Equal)),
    )
}

/// A comparison of a column with a constant, in the column's own type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Native<T> {
    /// Whether it holds depends on the value.
    Test(Cmp, T),
    /// It holds of every value that is not null.
    Always,
    /// It holds of no value.
    Never,
}

fn all_if<T>(holds: bool) -> Native<T> {
    if holds { Native::Always } else { Native::Never }
}

/// `column op constant` for integers of which all lie in `min..=max`.
pub(super) fn native_int(op: Cmp, constant: Num, min: i64, max: i64) -> Native<i64> {
    let (op, value) = match constant {
        Num::Int(value) => (op, value),
        Num::Float(value) if value.is_nan() => return Native::Never,
        Num::Float(value) => {
            // Infinities and huge values stand for something beyond every column's range.
            let floor = value.floor().clamp(-(2_f64.powi(100)), 2_f64.powi(100));
            let whole = floor as i128;
            let op = if floor == value {
                op
            } else {
                // Between two integers: x < 2.5 is x <= 2, and x > 2.5 is x > 2.
                match op {
                    Cmp::Equal => return Native::Never,
                    Cmp::NotEqual => return Native::Always,
                    Cmp::Less | Cmp::LessEqual => Cmp::LessEqual,
                    Cmp::Greater | Cmp::GreaterEqual => Cmp::Greater,
                }
            };
            (op, whole)
        }
    };
    if value > i128::from(max) {
        return all_if(op.holds(Ordering::Less));
    }
    if value < i128::from(min) {
        return all_if(op.holds(Ordering::Greater));
    }
    Native::Test(op, value as i64)
}

/// `column op constant` for doubles.
pub(super) fn native_f64(op: Cmp, constant: Num) -> Native<f64> {
    match constant {
        Num::Float(value) if value.is_nan() => Native::Never,
        Num::Float(value) => Native::Test(op, value),
        Num::Int(value) => {
            between(op, value as f64, |near| int_with_float(value, near), f64::next_down)
        }
    }
}

/// `column op constant` for single-precision columns. A float constant is rounded to single
/// precision first, so that what was inserted as 0.1 equals 0.1.
pub(super) fn native_f32(op: Cmp, constant: Num) -> Native<f32> {
    match constant {
        Num::Float(value) if value.is_nan() => Native::Never,
        Num::Float(value) => {
            let single = value as f32;
            if single.is_infinite() && value.is_finite() {
                let order = if value > 0.0 { Ordering::Less } else { Ordering::Greater };
                return all_if(op.holds(order));
            }
            Native::Test(op, single)
        }
        Num::Int(value) => {
            between(op, value as f32, |near| int_with_float(value, f64::from(near)), f32::next_down)
        }
    }
}

/// Compares with an integer that the float type may lack: `near` is the closest float, `order`
/// says how the integer lies to a float.
fn between<T: Copy>(
    op: Cmp,
    near: T,
    order: impl Fn(T) -> Option<Ordering>,
    next_down: impl Fn(T) -> T,
) -> Native<T> {
    let below = match order(near) {
        Some(Ordering::Equal) => return Native::Test(op, near),
        Some(Ordering::Less) => next_down(near),
        _ => near,
    };
    // No float lies strictly between `below` and the integer.
    match op {
        Cmp::Equal => Native::Never,
        Cmp::NotEqual => Native::Always,
        Cmp::Less | Cmp::LessEqual => Native::Test(Cmp::LessEqual, below),
        Cmp::Greater | Cmp::GreaterEqual => Native::Test(Cmp::Greater, below),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OPS: [Cmp; 6] =
        [Cmp::Equal, Cmp::NotEqual, Cmp::Less, Cmp::LessEqual, Cmp::Greater, Cmp::GreaterEqual];

    /// Numbers around the places where floats stop being able to tell integers apart.
    fn number() -> impl Strategy<Value = Num> {
        let edge = prop_oneof![
            Just(0_i64),
            Just(1 << 24),
            Just(1 << 53),
            Just(i64::MAX),
            Just(i64::MIN),
            Just(127),
            Just(-128),
            any::<i64>(),
        ];
        let near = (edge, -3_i64..4).prop_map(|(edge, by)| edge.saturating_add(by));
        prop_oneof![
            near.clone().prop_map(|value| Num::Int(i128::from(value))),
            (near, prop_oneof![Just(0.0), Just(0.5), Just(-0.25)])
                .prop_map(|(value, by)| Num::Float(value as f64 + by)),
            any::<f64>().prop_map(Num::Float),
            prop_oneof![Just(f64::INFINITY), Just(f64::NEG_INFINITY), Just(f64::NAN), Just(-0.0)]
                .prop_map(Num::Float),
        ]
    }

    fn expected(op: Cmp, value: Num, constant: Num) -> bool {
        value.compare(constant).is_some_and(|order| op.holds(order))
    }

    fn holds<T: PartialOrd>(native: Native<T>, value: &T) -> bool {
        match native {
            Native::Always => true,
            Native::Never => false,
            Native::Test(op, constant) => {
                value.partial_cmp(&constant).is_some_and(|order| op.holds(order))
            }
        }
    }

    #[test]
    fn integers_are_not_rounded_to_floats() {
        let big = Num::Int((1 << 53) + 1);
        assert_eq!(big.compare(Num::Float(2_f64.powi(53))), Some(Ordering::Greater));
        assert_eq!(
            Num::Float(9.3e18).compare(Num::Int(i128::from(i64::MAX))),
            Some(Ordering::Greater)
        );
        assert_eq!(Num::Float(f64::NAN).compare(big), None);
        assert_eq!(Num::Float(-0.5).compare(Num::Int(0)), Some(Ordering::Less));
    }

    #[test]
    fn what_was_inserted_as_a_tenth_equals_a_tenth() {
        assert!(holds(native_f32(Cmp::Equal, Num::Float(0.1)), &0.1_f32));
        assert!(!holds(native_f32(Cmp::Greater, Num::Float(0.1)), &0.1_f32));
        assert!(holds(native_f32(Cmp::Less, Num::Float(1e300)), &f32::MAX));
    }

    proptest! {
        #[test]
        fn native_comparisons_agree_with_exact_ones(value in any::<i64>(), single in any::<f32>(), constant in number()) {
            for op in OPS {
                let narrow = value as i8;
                prop_assert_eq!(
                    holds(native_int(op, constant, i64::MIN, i64::MAX), &value),
                    expected(op, Num::Int(i128::from(value)), constant)
                );
                prop_assert_eq!(
                    holds(native_int(op, constant, -128, 127), &i64::from(narrow)),
                    expected(op, Num::Int(i128::from(narrow)), constant)
                );
                let double = value as f64;
                prop_assert_eq!(
                    holds(native_f64(op, constant), &double),
                    expected(op, Num::Float(double), constant)
                );
                if matches!(constant, Num::Int(_)) {
                    for single in [single, value as f32, narrow.into()] {
                        if !single.is_nan() {
                            prop_assert_eq!(
                                holds(native_f32(op, constant), &single),
                                expected(op, Num::Float(single.into()), constant)
                            );
                        }
                    }
                }
            }
        }

        #[test]
        fn equal_numbers_have_one_canonical_form(a in number(), b in number()) {
            if let Some(order) = a.compare(b) {
                let same = match (a.canonical(), b.canonical()) {
                    (Num::Int(a), Num::Int(b)) => a == b,
                    (Num::Float(a), Num::Float(b)) => a == b,
                    _ => false,
                };
                prop_assert_eq!(same, order.is_eq());
            }
        }
    }
}
