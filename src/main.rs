//! The `rrlb` command.

mod allocator;

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: allocator::Allocator = allocator::Allocator;

fn main() -> ExitCode {
    allocator::without_huge_pages();
    // Before anything of Pingora's: it would choose `ring`, which has no X25519MLKEM768.
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        eprintln!("error: another TLS provider was installed before ours");
        return ExitCode::from(rrlb::cli::Exit::Internal as u8);
    }
    rrlb::cli::main()
}
