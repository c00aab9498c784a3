//! BGE-M3 and its relatives: text in, dense and sparse vectors out.
