//! stub
use super::error::CliError;
use super::output::Output;
use clap::Args;
use fencepost_client::Client;
use std::process::ExitCode;
#[derive(Args)]
pub(crate) struct Demo {}
impl Demo {
    pub(super) fn run(self, _: &Output) -> Result<ExitCode, CliError> {
        Ok(ExitCode::SUCCESS)
    }
}
#[derive(Args)]
pub(crate) struct DemoWorker {}
impl DemoWorker {
    pub(super) async fn run(self, _: &Client) -> Result<ExitCode, CliError> {
        Ok(ExitCode::SUCCESS)
    }
}
