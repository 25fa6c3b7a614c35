//! Schemas that checkpoints of a pipeline may have.

use clap::{Args, Subcommand};
use fencepost_client::Client;

use super::actor::Actor;
use super::error::CliError;
use super::output::{Cell, Output, hex};

#[derive(Subcommand)]
pub(crate) enum SchemaCommand {
    Declare(Declare),
    /// List the schemas that were declared for a pipeline, in that order.
    List {
        /// NAMESPACE/NAME.
        pipeline: String,
    },
}

/// Say that checkpoints of a pipeline may have this schema.
///
/// With `policy set --declared-schemas-only` a commit is refused unless its schema is declared, and is that of the head or
/// succeeds it. So declare the new one, as the successor of the old one, before the workers that use it are deployed.
/// Without that policy declarations only inform. The same again does nothing.
///
/// Example: `fencepost schema declare prod/orders 9f86d081 --name orders-v2 --successor-of 2c26b46b`
#[derive(Args)]
pub(crate) struct Declare {
    /// NAMESPACE/NAME; need not exist yet.
    pipeline: String,
    /// The fingerprint that workers commit with, in hexadecimal; `fencepost show` prints that of a checkpoint.
    #[arg(value_parser = parse_hex)]
    fingerprint: Bytes,
    /// For people, such as orders-v2.
    #[arg(long, default_value = "", hide_default_value = true)]
    name: String,
    /// The declared schema that it succeeds: branches may go from that one to this one.
    #[arg(long, value_name = "FINGERPRINT", value_parser = parse_hex)]
    successor_of: Option<Bytes>,
    /// Why, for the audit.
    #[arg(long, short, default_value = "", hide_default_value = true)]
    reason: String,
    #[command(flatten)]
    actor: Actor,
}

/// What two digits for each byte stand for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Bytes(Vec<u8>);

impl SchemaCommand {
    pub(super) async fn run(self, client: &Client, output: &Output) -> Result<(), CliError> {
        match self {
            SchemaCommand::Declare(declare) => declare.run(client, output).await,
            SchemaCommand::List { pipeline } => {
                let schemas = client.pipeline(pipeline).schemas().await?;
                let rows = schemas.iter().map(|schema| {
                    vec![
                        Cell::text(hex(&schema.fingerprint)),
                        Cell::maybe(&schema.name),
                        Cell::maybe(&hex(&schema.successor_of)),
                    ]
                });
                output.rows(&["fingerprint", "name", "successor_of"], rows.collect(), "no schemas are declared")
            }
        }
    }
}

impl Declare {
    async fn run(self, client: &Client, output: &Output) -> Result<(), CliError> {
        let before = self.successor_of.map(|Bytes(before)| before).unwrap_or_default();
        let mut declaration =
            client.pipeline(&self.pipeline).declare_schema(self.fingerprint.0.clone()).name(&self.name);
        if !before.is_empty() {
            declaration = declaration.successor_of(before.clone());
        }
        declaration.actor(self.actor.name()).reason(self.reason).send().await?;
        output.record(vec![
            ("pipeline", Cell::text(self.pipeline)),
            ("fingerprint", Cell::text(hex(&self.fingerprint.0))),
            ("name", Cell::maybe(&self.name)),
            ("successor_of", Cell::maybe(&hex(&before))),
        ])
    }
}

fn parse_hex(text: &str) -> Result<Bytes, String> {
    let byte = |pair: &[u8]| {
        let digits = str::from_utf8(pair).ok().filter(|digits| digits.bytes().all(|it| it.is_ascii_hexdigit()));
        u8::from_str_radix(digits?, 16).ok()
    };
    let bytes: Option<Vec<u8>> = text.as_bytes().chunks(2).map(byte).collect();
    let bytes = bytes.filter(|bytes| !bytes.is_empty() && text.len() == 2 * bytes.len());
    bytes
        .map(Bytes)
        .ok_or_else(|| format!("'{text}' is no fingerprint: expected pairs of hexadecimal digits, such as 9f86d081"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_taken_as_it_is_shown() {
        assert_eq!(parse_hex("00abFF"), Ok(Bytes(vec![0, 0xab, 0xff])));
        assert_eq!(hex(&parse_hex("9f86d081").unwrap().0), "9f86d081");
        for text in ["", "9", "9f8", "xy", "+f", "é"] {
            let problem = parse_hex(text).unwrap_err();
            assert!(problem.contains(&format!("'{text}'")) && problem.contains("such as 9f86d081"), "{problem}");
        }
    }
}
