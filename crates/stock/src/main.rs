//! The stock service's binary.

use std::process::ExitCode;

use runtime::service::Service;

fn main() -> ExitCode {
    let service = Service { name: "stock", version: env!("CARGO_PKG_VERSION"), help: include_str!("help.txt") };
    service.main(|env| {
        let settings = stock::Settings::read(env);
        |health, shutdown| stock::run(settings, health, shutdown)
    })
}
