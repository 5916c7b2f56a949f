//! onhand
fn main() {}
