//! What every running pipeline is built on: the bridge from async code to the
//! processor, and tasks with an owner.

mod cpu;
mod supervisor;

pub use cpu::Cpu;
pub use supervisor::{Drained, Outcome, Supervisor};
