//! The importer's binary.

use std::process::ExitCode;

use runtime::service::Service;

fn main() -> ExitCode {
    let service = Service { name: "importer", version: env!("CARGO_PKG_VERSION"), help: include_str!("help.txt") };
    service.main(|env| {
        let settings = importer::Settings::read(env);
        |health, shutdown| importer::run(settings, health, shutdown)
    })
}
