//! Schemas that the checkpoints of a pipeline may have, and which may follow which.

use bytes::Bytes;
use fencepost::log::v1::SchemaDeclared;
use fencepost::v1::Schema;

use super::{Pipeline, State, entry};

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
