//! Models of any shape, as somebody could bring them.

mod made;
mod shapes;
