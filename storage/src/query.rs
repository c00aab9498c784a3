//! Reading rows of a view.
