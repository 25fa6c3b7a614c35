//! Schemas that the checkpoints of a pipeline may have.

use fencepost::Reason;
use fencepost::log::v1::fact::Kind;
use fencepost::v1::{DeclareSchemaRequest, DeclareSchemaResponse, ListSchemasRequest, ListSchemasResponse, Schema};
use prost::Message as _;
use tonic::{Response, Status};

use super::Backend;
use super::status::status;
use crate::error::Refusal;
use crate::sequencer::Decision;
use crate::state::{check_asked_by, check_pipeline, check_schema};

pub(super) async fn declare(
    backend: &Backend,
    request: DeclareSchemaRequest,
) -> Result<Response<DeclareSchemaResponse>, Status> {
    let sequencer = &backend.sequencer;
    check_declaration(&request).map_err(status)?;
    let decided = sequencer
        .decide(request.encoded_len(), move |state, _| {
            let declared = state.evaluate_schema_declare(&request)?;
            Ok(Decision { fact: declared.map(Kind::SchemaDeclared), answer: () })
        })
        .await
        .map_err(status)?;
    Ok(Response::new(DeclareSchemaResponse { header: Some(sequencer.header(decided.seen)) }))
}

pub(super) async fn list(
    backend: &Backend,
    request: ListSchemasRequest,
) -> Result<Response<ListSchemasResponse>, Status> {
    let sequencer = &backend.sequencer;
    let ListSchemasRequest { cluster, pipeline } = request;
    check_pipeline("pipeline", &pipeline).map_err(status)?;
    let (schemas, seen) = sequencer
        .read(move |view| {
            view.state.check_cluster(cluster.as_ref())?;
            Ok(view.state.known_pipeline(&pipeline)?.schemas().to_vec())
        })
        .await
        .map_err(status)?;
    Ok(Response::new(ListSchemasResponse { header: Some(sequencer.header(seen)), schemas }))
}

fn check_declaration(request: &DeclareSchemaRequest) -> Result<(), Refusal> {
    check_pipeline("pipeline", &request.pipeline)?;
    let missing = || Refusal::field(Reason::InvalidField, "schema", "", "a schema");
    let schema: &Schema = request.schema.as_ref().ok_or_else(missing)?;
    check_schema(schema)?;
    check_asked_by(&request.actor, &request.reason)
}
