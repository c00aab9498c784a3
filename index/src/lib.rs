//! Vector and sparse indexes over borrowed rows.
