//! What a disk may hold after a power loss, at every moment of a run, and whether the checkpoints there are still what
//! they must be. For tests only.
//!
//! ```text
//! files.rs ──every change──▶ journal ──up to a point──▶ model ──some outcome──▶ tree ──▶ a directory ──▶ checked
//! ```
//!
//! The rules are those that POSIX leaves a file system, not those of one that is kinder. Until fsync(2) of a file, what
//! was written to it is there or not, in any parts, and so is its length. Until fsync(2) of a directory each name that
//! was made, taken away or changed in it is as it was or as it was to be, whatever became of the others and of the data
//! behind it; a rename is done or not, never half. Nothing is durable because something later is.
//!
//! A forked writer's own operations are not in the journal. They are the writes of one file, memory, that mode `stop`
//! makes from the process itself, and what is durable of them is up to the same fsync(2) of the parent.

mod content;
pub(crate) mod journal;
mod model;
mod once;
mod outcomes;
mod scenario;
mod tests;
mod working_copy;
