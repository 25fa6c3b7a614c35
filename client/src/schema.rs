//! What schemas the checkpoints of a pipeline may have ([`Pipeline::declare_schema`]). They are enforced where its policy
//! says so ([`Policy::declared_schemas_only`](crate::Policy::declared_schemas_only)).

use bytes::Bytes;
use fencepost::v1;

use crate::error::Result;
use crate::history::recorded;
use crate::pipeline::Pipeline;
use crate::rpc::pipelines;

/// A schema that is about to be declared. Begin with [`Pipeline::declare_schema`].
#[derive(Clone, Debug)]
#[must_use = "nothing is sent before `send`"]
pub struct DeclareSchema {
    pipeline: Pipeline,
    request: v1::DeclareSchemaRequest,
}

recorded!(DeclareSchema);

impl DeclareSchema {
    /// A name, for people. At most 128 printable ASCII characters without spaces.
    pub fn name(mut self, name: impl Into<String>) -> DeclareSchema {
        self.schema().name = name.into();
        self
    }

    /// The declared schema that this one succeeds: a branch may go on from that one with this one.
    pub fn successor_of(mut self, fingerprint: impl Into<Bytes>) -> DeclareSchema {
        self.schema().successor_of = fingerprint.into();
        self
    }

    /// Sends it until it is answered. The same declaration again is success; another one of that fingerprint is refused
    /// with `EXISTS`.
    pub async fn send(self) -> Result<()> {
        let rpc = &self.pipeline.client().shared.rpc;
        let send = async |channel, request| pipelines(channel).declare_schema(request).await;
        rpc.ask(self.request, rpc.deadline(), send).await.map(drop)
    }

    fn schema(&mut self) -> &mut v1::Schema {
        self.request.schema.get_or_insert_default()
    }
}

impl Pipeline {
    /// Says that checkpoints may have the schema of this fingerprint ([`Checkpoint::schema`](crate::Checkpoint::schema)):
    /// 1 to 64 bytes. The pipeline need not exist yet.
    ///
    /// ```
    /// # use fencepost_client::{Client, Result};
    /// # async fn before_the_new_column(client: Client) -> Result<()> {
    /// let orders = client.pipeline("prod/orders");
    /// orders.declare_schema("sha256:5e1f").name("orders-v2").successor_of("sha256:91b0").actor("ada").send().await
    /// # }
    /// ```
    pub fn declare_schema(&self, fingerprint: impl Into<Bytes>) -> DeclareSchema {
        let schema = v1::Schema { fingerprint: fingerprint.into(), ..Default::default() };
        let request =
            v1::DeclareSchemaRequest { pipeline: self.name().to_owned(), schema: Some(schema), ..Default::default() };
        DeclareSchema { pipeline: self.clone(), request }
    }

    /// The declared schemas, in the order in which they were declared.
    pub async fn schemas(&self) -> Result<Vec<v1::Schema>> {
        let rpc = &self.client().shared.rpc;
        let request = v1::ListSchemasRequest { cluster: None, pipeline: self.name().to_owned() };
        let send = async |channel, request| pipelines(channel).list_schemas(request).await;
        Ok(rpc.ask(request, rpc.deadline(), send).await?.schemas)
    }
}
