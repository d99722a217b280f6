//! The `uvs` program.

fn main() {}
