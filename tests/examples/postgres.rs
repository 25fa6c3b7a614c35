//! The PostgreSQL that examples start.

#[path = "../../examples/support/postgres.rs"]
pub(crate) mod server;

use server::Postgres;

use crate::support::Result;

#[tokio::test]
async fn a_postgres_of_ones_own_answers_and_is_gone_when_it_is_dropped() {
    if Postgres::programs().is_none() {
        eprintln!("SKIPPED a_postgres_of_ones_own_answers_and_is_gone_when_it_is_dropped: {}", server::ABSENT);
        return;
    }
    let postgres = Postgres::start().await.unwrap();
    let client = postgres.connect().await.unwrap();
    let one: i32 = client.query_one("SELECT 1", &[]).await.unwrap().get(0);
    assert_eq!(one, 1);

    let address = postgres.address();
    drop(postgres);
    assert!(client.query_one("SELECT 1", &[]).await.is_err());
    assert!(server::connect(&address).await.is_err());
}
