//! Fits the factors of a measurements file and prints the calibration: `cargo run -p stallfree-sim --example fit FILE`.

#![expect(clippy::print_stdout, reason = "an example shows")]

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("which measurements file?")?;
    let measured: stallfree_sim::Measured = serde_json::from_str(&std::fs::read_to_string(path)?)?;
    println!("{}", serde_json::to_string_pretty(&measured.fit()?)?);
    Ok(())
}
