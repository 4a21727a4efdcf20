//! check FILE: whether FILE, a picture of the guest's memory from address 0 on, is what its own header says (model.rs).
//! For the guest's own test; a test in Rust takes model.rs in itself.

#[expect(dead_code, reason = "the guest uses the rest")]
mod model;

use std::os::unix::fs::FileExt;
use std::process::ExitCode;

fn main() -> ExitCode {
    let path = std::env::args().nth(1).expect("usage: check FILE");
    match check(&path) {
        Ok(header) => {
            println!("{path}: as it must be after {} steps", header.steps);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{path}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn check(path: &str) -> Result<model::Header, String> {
    let file = std::fs::File::open(path).map_err(|e| e.to_string())?;
    let read = |address, bytes: u64| {
        let mut buffer = vec![0; bytes as usize];
        file.read_exact_at(&mut buffer, address).map_err(|e| e.to_string())?;
        Ok::<_, String>(buffer)
    };
    let header = model::Header::parse(&read(model::HEADER_ADDRESS, model::Header::BYTES as u64)?)?;
    let arena = read(header.arena, header.arena_bytes)?;
    let (cells, _) = arena.as_chunks::<8>();
    model::check(&header, |cell| u64::from_le_bytes(cells[cell as usize])).map_err(|e| e.to_string())?;
    Ok(header)
}
