mod clause;
mod edits;
mod join;
mod mask;
pub mod options;
pub mod protect;
pub mod rewriter;
pub mod scorers;
pub mod segment;
#[cfg(test)]
mod testing;
mod trim;
pub mod restore;
pub mod tidy;
