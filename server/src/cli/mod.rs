//! The command line: each command is a few lines over the client crate or the server library.
//!
//! Data goes to standard output, as a table or as JSON; notes and errors go to standard error. What a command found is
//! also in its exit code ([`exit`]).

mod actor;
mod audit;
mod barrier;
mod compact;
mod confirm;
mod dead_letters;
mod demo;
mod duration;
mod error;
mod exit;
mod fact;
mod fence;
mod fork;
mod health;
mod inspect;
mod lease;
mod log;
mod offline;
mod output;
mod policy;
mod progress;
mod restore;
mod rewind;
mod run;
mod savepoint;
mod schema;
mod scope;
mod serve;
mod snapshot;
mod staged;
mod status;
mod traceparent;
mod transfer;
mod verify;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use fencepost_client::Client;
use tracing_subscriber::EnvFilter;

use self::error::CliError;
use self::output::Output;

/// Durable checkpoints and fenced commits for data pipelines.
///
/// A pipeline that saves its progress in Fencepost resumes, after any crash, at exactly the last commit that was
/// acknowledged, and no worker that has been replaced can ever move that progress again.
#[derive(Parser)]
#[command(name = "fencepost", version, max_term_width = 100, after_long_help = exit::HELP)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct Common {
    /// The server to talk to.
    #[arg(
        long,
        short,
        global = true,
        env = "FENCEPOST_ENDPOINT",
        default_value = "http://127.0.0.1:7411",
        value_name = "URL",
        help_heading = "Global options"
    )]
    endpoint: String,
    /// How to print what was found.
    #[arg(long, short, global = true, value_enum, default_value_t, help_heading = "Global options")]
    output: output::Format,
}

#[derive(Subcommand)]
enum Command {
    Serve(serve::Serve),
    // Its help is that of its arguments; a comment here would replace the long form too.
    Demo(demo::Demo),
    Run(run::Run),
    Status(status::StatusCommand),
    /// List pipelines.
    Pipelines(inspect::Pipelines),
    /// List the branches of a pipeline, or of all, with their leases and heads.
    Branches(inspect::Branches),
    /// List the checkpoints of a branch, newest first.
    Checkpoints(inspect::Checkpoints),
    /// Show one checkpoint, or write its state to standard output.
    Show(inspect::Show),
    /// Print the facts of the log: who was granted what, who committed what.
    Log(log::Log),
    /// See who holds which branch; give a branch back; take one from a worker that is stuck.
    #[command(subcommand)]
    Lease(lease::Lease),
    /// Show or change what a pipeline keeps.
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// Name a checkpoint so that it is kept; list and delete such names.
    #[command(subcommand)]
    Savepoint(savepoint::SavepointCommand),
    /// Say which schemas checkpoints may have; list them.
    #[command(subcommand)]
    Schema(schema::SchemaCommand),
    Staged(staged::Staged),
    Barriers(barrier::Barriers),
    /// Open a barrier; show, await or abort one.
    #[command(subcommand)]
    Barrier(barrier::BarrierCommand),
    #[command(subcommand)]
    DeadLetters(dead_letters::DeadLettersCommand),
    Rewind(rewind::Rewind),
    Fence(fence::Fence),
    Fork(fork::Fork),
    Audit(audit::Audit),
    Compact(compact::Compact),
    /// Copy the whole store, for a backup; check such a copy.
    #[command(subcommand)]
    Snapshot(snapshot::SnapshotCommand),
    Restore(restore::Restore),
    Export(transfer::Export),
    Import(transfer::Import),
    Verify(verify::Verify),
    /// Make the index of old checkpoints again.
    #[command(subcommand)]
    Index(offline::IndexCommand),
    /// Print a completion script for a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page.
    #[command(hide = true)]
    Man,
    /// Keeps a child of `run` from outliving it.
    #[command(name = "__guard", hide = true)]
    Guard(run::Guard),
    /// One worker of the demonstration.
    #[command(name = "__demo-worker", hide = true)]
    DemoWorker(demo::DemoWorker),
    /// Keeps a process of the demonstration from outliving it.
    #[command(name = "__demo-child", hide = true)]
    DemoChild(demo::DemoChild),
}

/// Parses the command line, runs the command and says how it went.
pub(crate) fn main() -> ExitCode {
    let Cli { common, command } = Cli::parse();
    let output = Output::new(common.output);
    let result = match command {
        Command::Serve(serve) => {
            trace(serve.log_format(), "info");
            serve.run(&output)
        }
        Command::Completions { shell } => completions(shell),
        Command::Man => manual(),
        Command::Guard(guard) => return guard.run(),
        Command::DemoChild(child) => return child.run(),
        Command::Verify(verify) => verify.run(&output),
        Command::Snapshot(snapshot::SnapshotCommand::Verify(verify)) => verify.run(&output),
        Command::Restore(restore) => restore.run(&output),
        Command::Index(index) => {
            trace(serve::LogFormat::Text, "warn");
            index.run(&output)
        }
        Command::Compact(compact::Compact { data_dir: Some(dir), segments }) => {
            trace(serve::LogFormat::Text, "warn");
            compact::run_offline(&dir, &segments, &output)
        }
        Command::Demo(demo) => demo.run(&output),
        command => {
            trace(serve::LogFormat::Text, "warn");
            on_runtime(client_command(command, &common.endpoint, &output))
        }
    };
    match result {
        Ok(code) => code,
        Err(error) => error.report(&output),
    }
}

async fn client_command(command: Command, endpoint: &str, output: &Output) -> Result<ExitCode, CliError> {
    let client = Client::connect(endpoint).await?;
    match command {
        Command::Status(status) => status.run(&client, output).await?,
        Command::Pipelines(pipelines) => pipelines.run(&client, output).await?,
        Command::Branches(branches) => branches.run(&client, output).await?,
        Command::Checkpoints(checkpoints) => checkpoints.run(&client, output).await?,
        Command::Show(show) => show.run(&client, output).await?,
        Command::Log(log) => log.run(&client, output).await?,
        Command::Lease(lease) => lease.run(&client, output).await?,
        Command::Policy(policy) => policy.run(&client, output).await?,
        Command::Savepoint(savepoint) => savepoint.run(&client, output).await?,
        Command::Schema(schema) => schema.run(&client, output).await?,
        Command::Staged(staged) => staged.run(&client, output).await?,
        Command::Barriers(barriers) => barriers.run(&client, output).await?,
        Command::Barrier(barrier) => return barrier.run(&client, output).await,
        Command::DeadLetters(letters) => letters.run(&client, output).await?,
        Command::Fence(fence) => fence.run(&client, output).await?,
        Command::Rewind(rewind) => rewind.run(&client, output).await?,
        Command::Fork(fork) => fork.run(&client, output).await?,
        Command::Audit(audit) => audit.run(&client, output).await?,
        Command::Compact(compact) => return compact.run(&client, output).await,
        Command::Snapshot(snapshot::SnapshotCommand::Create(create)) => create.run(&client, output).await?,
        Command::Export(export) => export.run(&client, output).await?,
        Command::Import(import) => import.run(&client, output).await?,
        Command::Run(run) => return run.run(&client, endpoint).await,
        Command::DemoWorker(worker) => return worker.run(&client).await,
        Command::Serve(_)
        | Command::Completions { .. }
        | Command::Man
        | Command::Guard(_)
        | Command::DemoChild(_)
        | Command::Verify(_)
        | Command::Snapshot(snapshot::SnapshotCommand::Verify(_))
        | Command::Restore(_)
        | Command::Index(_)
        | Command::Demo(_) => unreachable!("handled before a server is needed"),
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs a command that waits for others. One thread: a command has little to do, and a child must be started by the
/// thread that lives longest.
fn on_runtime(command: impl Future<Output = Result<ExitCode, CliError>>) -> Result<ExitCode, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|cause| CliError::io("starting the runtime", cause))?.block_on(command)
}

/// Sends what the program has to say about itself to standard error; RUST_LOG chooses how much.
fn trace(format: serve::LogFormat, level: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let is_terminal = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        serve::LogFormat::Text => subscriber.with_ansi(is_terminal).with_target(false).init(),
        serve::LogFormat::Json => subscriber.json().init(),
    }
}

fn completions(shell: clap_complete::Shell) -> Result<ExitCode, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "fencepost", &mut script);
    output::write_raw(&script)?;
    Ok(ExitCode::SUCCESS)
}

fn manual() -> Result<ExitCode, CliError> {
    let mut page = Vec::new();
    clap_mangen::Man::new(Cli::command()).render(&mut page).map_err(|cause| CliError::io("making the page", cause))?;
    output::write_raw(&page)?;
    Ok(ExitCode::SUCCESS)
}
