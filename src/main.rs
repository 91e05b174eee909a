//! The `maskwright` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    maskwright::cli::main()
}
