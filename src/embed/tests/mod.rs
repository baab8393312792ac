//! Models of any shape, as somebody could bring them.

mod device;
pub mod made;
mod shapes;
