//! Bad input, one test for each kind: ckvmm says in one line which thing is wrong and how to mend it, ends with the
//! status that scripts know, lets a VM that runs go on, and loses nothing.

#![allow(clippy::unwrap_used)]

mod checkpoints;
mod fields;
mod files;
mod images;
mod job;
mod network;
mod nodes;
mod places;
mod qcow2;
mod signals;
mod verification;
