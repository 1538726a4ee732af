//! The `rrlb` command.

use std::process::ExitCode;

/// Pingora allocates for every request; this allocator is the cheapest lever there is.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Before anything of Pingora's: it would choose `ring`, which has no X25519MLKEM768.
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        eprintln!("error: another TLS provider was installed before ours");
        return ExitCode::from(rrlb::cli::Exit::Internal as u8);
    }
    rrlb::cli::main()
}
