//! MLX's limits for the whole process: how much work goes into a command buffer, and which memory is wired and kept.
//!
//! MLX's own defaults suit short programs. A program that decodes a large model chooses others: see [`command_buffers`] and
//! [`hold_memory`]. What the user has set is never changed.

mod command_buffer;
mod memory;

pub use command_buffer::{command_buffers, limit_command_buffers};
pub(super) use memory::free_unused;
pub use memory::{free_bytes, hold_memory};

/// Who chose the value of a [`Setting`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChosenBy {
    /// The user, by an environment variable.
    User,
    /// This crate.
    Zmlx,
    /// MLX: its default.
    Mlx,
}

impl ChosenBy {
    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::User => "the user",
            Self::Zmlx => "zmlx",
            Self::Mlx => "MLX",
        }
    }
}

/// One of MLX's limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The environment variable or MLX's function.
    pub name: &'static str,
    /// Its value; `None` where that is MLX's default, which MLX does not tell.
    pub value: Option<String>,
    /// Who chose it.
    pub chosen_by: ChosenBy,
    /// Why this crate left it alone, if it did.
    pub why: Option<&'static str>,
}

impl Setting {
    const fn of_mlx(name: &'static str, why: &'static str) -> Self {
        Self { name, value: None, chosen_by: ChosenBy::Mlx, why: Some(why) }
    }
}
