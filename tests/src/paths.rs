//! Where the parts of the project are.

use std::{env, path::PathBuf};

/// The project's root.
pub fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// The `ckvmm` program: `$CKVMM`, else the one that was built beside this test.
///
/// # Panics
/// If there is none.
pub fn ckvmm() -> PathBuf {
    if let Some(path) = env::var_os("CKVMM") {
        return path.into();
    }
    let mut path = env::current_exe().expect("a test has a path");
    path.pop();
    if path.ends_with("deps") {
        path.pop();
    }
    let path = path.join("ckvmm");
    assert!(path.exists(), "{} is not there; build it with `cargo build`", path.display());
    path
}

/// A file of the guests that `make images` makes.
///
/// # Panics
/// If it is not there.
pub fn guest(file: &str) -> PathBuf {
    made("guest", file, "make images")
}

/// A file that `maker` makes in the folder `dir` of all that is made.
///
/// # Panics
/// If it is not there.
pub fn made(dir: &str, file: &str, maker: &str) -> PathBuf {
    let path = root().join("build").join(dir).join(file);
    assert!(path.exists(), "{} is not there; make it with `{maker}`", path.display());
    path.canonicalize().expect("it exists")
}
