//! What the parser understood: expressions with their places, names not yet bound.

use super::lex::Span;

/// One expression.
#[derive(Clone, Debug)]
pub(super) struct Expr {
    pub(super) kind: Kind,
    pub(super) span: Span,
    /// Nodes on the longest way down, so that walking the tree cannot exhaust the stack.
    pub(super) height: u16,
}

/// The kinds of expressions.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    Bool(bool),
    /// The minus sign is an operator, hence unsigned.
    Int(u64),
    Float(f64),
    Text(String),
    List(List),
    /// `{name}`.
    Template(String),
    Path(Path),
    Not(Box<Expr>),
    Negate(Box<Expr>),
    /// `~x`.
    Complement(Box<Expr>),
    /// A flat run of one connective.
    Logic {
        connective: Connective,
        terms: Vec<Expr>,
    },
    Compare {
        op: Cmp,
        left: Box<Expr>,
        right: Box<Expr>,
    },
    /// `low < value <= high`, or the same with all signs turned round.
    Range {
        low: Box<Expr>,
        low_op: Cmp,
        value: Box<Expr>,
        high_op: Cmp,
        high: Box<Expr>,
    },
    Binary {
        op: Binary,
        left: Box<Expr>,
        right: Box<Expr>,
    },
    In {
        value: Box<Expr>,
        list: Box<Expr>,
        negated: bool,
    },
    Like {
        value: Box<Expr>,
        pattern: Box<Expr>,
    },
    /// `=~` and `!~`.
    Matches {
        value: Box<Expr>,
        pattern: Box<Expr>,
        negated: bool,
    },
    IsNull {
        value: Box<Expr>,
        negated: bool,
    },
    Exists(Box<Expr>),
    Call {
        name: String,
        args: Vec<Arg>,
    },
    /// `INTERVAL '…'` or `ISO '…'`.
    Temporal {
        name: String,
        text: String,
    },
}

/// A list; homogeneous literals are kept packed, since clients send lists of 10⁵ keys.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum List {
    Ints(Vec<i64>),
    Texts(Vec<String>),
    Mixed(Vec<Expr>),
}

/// `name["a"][0]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Path {
    pub(super) name: String,
    pub(super) steps: Vec<Step>,
}

/// One bracket of a path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Step {
    /// `["a"]`.
    Key(String),
    /// `[0]`.
    Index(usize),
    /// `[sub]`, a field of a struct.
    Member(String),
}

/// An argument of a call: `value` or `name=value`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Arg {
    pub(super) name: Option<String>,
    pub(super) value: Expr,
}

/// `and`, `or`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Connective {
    And,
    Or,
}

/// A comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cmp {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
}

impl Cmp {
    /// The comparison with both sides exchanged: `a < b` is `b > a`.
    pub(super) fn flip(self) -> Self {
        match self {
            Self::Equal => Self::Equal,
            Self::NotEqual => Self::NotEqual,
            Self::Less => Self::Greater,
            Self::LessEqual => Self::GreaterEqual,
            Self::Greater => Self::Less,
            Self::GreaterEqual => Self::LessEqual,
        }
    }

    /// The comparison that holds when this one does not.
    pub(super) fn negate(self) -> Self {
        match self {
            Self::Equal => Self::NotEqual,
            Self::NotEqual => Self::Equal,
            Self::Less => Self::GreaterEqual,
            Self::LessEqual => Self::Greater,
            Self::Greater => Self::LessEqual,
            Self::GreaterEqual => Self::Less,
        }
    }

    /// [`Cmp::negate`] if `negated`.
    pub(super) fn negate_if(self, negated: bool) -> Self {
        if negated { self.negate() } else { self }
    }

    /// Whether the comparison holds of two values in that order.
    pub(super) fn holds(self, order: std::cmp::Ordering) -> bool {
        match self {
            Self::Equal => order.is_eq(),
            Self::NotEqual => order.is_ne(),
            Self::Less => order.is_lt(),
            Self::LessEqual => order.is_le(),
            Self::Greater => order.is_gt(),
            Self::GreaterEqual => order.is_ge(),
        }
    }

    /// Whether this is `<` or `<=`.
    pub(super) fn is_less(self) -> bool {
        matches!(self, Self::Less | Self::LessEqual)
    }

    /// Whether this is `==` or `!=`.
    pub(super) fn is_equality(self) -> bool {
        matches!(self, Self::Equal | Self::NotEqual)
    }
}

/// An operator on two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Binary {
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
    Power,
    ShiftLeft,
    ShiftRight,
    And,
    Xor,
    Or,
}

impl Binary {
    /// As it is written.
    pub(super) fn sign(self) -> &'static str {
        match self {
            Self::Add => "+",
            Self::Subtract => "-",
            Self::Multiply => "*",
            Self::Divide => "/",
            Self::Remainder => "%",
            Self::Power => "**",
            Self::ShiftLeft => "<<",
            Self::ShiftRight => ">>",
            Self::And => "&",
            Self::Xor => "^",
            Self::Or => "|",
        }
    }
}

impl PartialEq for Expr {
    /// Equal in meaning: places are left out.
    fn eq(&self, other: &Self) -> bool {
        self.kind == other.kind
    }
}
