//! The `ckvmm` program; all of it is in the library.

fn main() -> std::process::ExitCode {
    ckvmm::cli::main()
}
