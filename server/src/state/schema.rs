//! Schemas that the checkpoints of a pipeline may have, and which may follow which.

use std::fmt::Write as _;

use bytes::Bytes;
use fencepost::Reason;
use fencepost::log::v1::SchemaDeclared;
use fencepost::v1::{DeclareSchemaRequest, Schema};

use super::{Pipeline, State, entry};
use crate::config::limits;
use crate::error::Refusal;

/// Declared schemas, in the order in which they were declared.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Schemas(Vec<Schema>);

impl Schemas {
    pub(super) fn get(&self, fingerprint: &[u8]) -> Option<&Schema> {
        self.0.iter().find(|schema| *schema.fingerprint == *fingerprint)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn insert(&mut self, schema: Schema) {
        let Schema { fingerprint, name, successor_of } = schema;
        // Not a part of the memory of a whole fact.
        let own = |bytes: Bytes| Bytes::copy_from_slice(&bytes);
        self.0.push(Schema { fingerprint: own(fingerprint), name, successor_of: own(successor_of) });
    }
}

impl Pipeline {
    /// Declared schemas, in the order in which they were declared.
    pub fn schemas(&self) -> &[Schema] {
        &self.schemas.0
    }
}

impl State {
    /// Judges a declaration, its shape already checked. `None`: it was declared before.
    pub fn evaluate_schema_declare(&self, request: &DeclareSchemaRequest) -> Result<Option<SchemaDeclared>, Refusal> {
        self.check_cluster(request.cluster.as_ref())?;
        self.check_ready(&request.pipeline)?;
        self.judge_declared(request)
    }

    /// The same of a pipeline that may be being imported.
    pub fn judge_declared(&self, request: &DeclareSchemaRequest) -> Result<Option<SchemaDeclared>, Refusal> {
        let DeclareSchemaRequest { pipeline: of, schema, actor, reason, .. } = request;
        let schema = schema.clone().unwrap_or_default();
        let none = Schemas::default();
        let schemas = self.pipeline(of).map_or(&none, |pipeline| &pipeline.schemas);
        if let Some(known) = schemas.get(&schema.fingerprint) {
            return if *known == schema { Ok(None) } else { Err(declared(of, known)) };
        }
        if !schema.successor_of.is_empty() && schemas.get(&schema.successor_of).is_none() {
            let (value, expected) =
                (shown_fingerprint(&schema.successor_of), format!("a schema that '{of}' has declared, or none"));
            return Err(Refusal::field(Reason::InvalidField, "schema.successor_of", value, &expected));
        }
        if schemas.len() >= limits::SCHEMAS_MAX {
            let expected = format!("at most {} schemas in '{of}', and it has as many", limits::SCHEMAS_MAX);
            return Err(Refusal::field(Reason::TooLarge, "schema", shown_fingerprint(&schema.fingerprint), &expected));
        }
        let (pipeline, actor, reason) = (of.clone(), actor.clone(), reason.clone());
        Ok(Some(SchemaDeclared { pipeline, schema: Some(schema), actor, reason }))
    }

    pub(super) fn apply_schema_declared(&mut self, fact: &SchemaDeclared, is_whole: bool) -> Result<(), String> {
        let schema = fact.schema.as_ref().ok_or("it declares nothing")?;
        let schemas = &mut entry(&mut self.pipelines, &fact.pipeline).schemas;
        match schemas.get(&schema.fingerprint) {
            None => schemas.insert(schema.clone()),
            Some(_) if is_whole => return Err(format!("schema '{}' is declared already", schema.name)),
            Some(_) => {}
        }
        Ok(())
    }
}

/// What a caller is told who declares a known schema in another way.
fn declared(of: &str, known: &Schema) -> Refusal {
    let fingerprint = shown_fingerprint(&known.fingerprint);
    let successor = match &known.successor_of {
        none if none.is_empty() => "successor of none".to_owned(),
        before => format!("successor of {}", shown_fingerprint(before)),
    };
    let message = format!(
        "schema.fingerprint {fingerprint} is declared in '{of}' already, as '{}', {successor}: a declaration stands, so give another \
         schema another fingerprint",
        known.name
    );
    Refusal::new(Reason::Exists, message).with("field", "schema.fingerprint").with("value", fingerprint)
}

/// A fingerprint as people see it.
pub fn shown_fingerprint(fingerprint: &[u8]) -> String {
    fingerprint.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}
