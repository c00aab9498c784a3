//! Tests that need two crates or a process.
