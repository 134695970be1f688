//! The guide: how to run, use and operate the server, and how it works.
//!
//! The chapters are Markdown files next to this module. The Rust examples in them are run as tests.
//!
//! | chapter | content |
//! |---|---|
//! | [`getting_started`] | build, first messages, offline delivery |
//! | [`migration`] | from `@cryb/mesa`: clients, configuration, backends, `mesa import`, a table of names |
//! | [`configuration`] | every key with its default and environment variable; namespaces |
//! | [`tls_and_proxies`] | certificates, `wss://`, proxies in front of the server |
//! | [`cli`] | the commands of `mesa` |
//! | [`http_api`] | dispatch, idempotency, users, health, error codes |
//! | [`resume_protocol`] | frames, sequences, acknowledgement, gaps, devices |
//! | [`javascript_client`] | `mesa-client` for browsers and Node: resume, positions, gaps, reconnects |
//! | [`client_protocol`] | how to write a client in another language, and check it |
//! | [`authentication`] | JWT, JWKS, webhook, API keys |
//! | [`webhooks`] | events for a backend: types, signature, at-least-once delivery |
//! | [`portals`] | client events for backends as server-sent events |
//! | [`redis_protocol`] | Dispatchers and Portals of the original without a Redis |
//! | [`cluster`] | several servers on one Redis |
//! | [`cluster_failover`] | what a failover of the Redis means for messages and sequences |
//! | [`cluster_with_original`] | servers of the original on the same Redis |
//! | [`embedding`] | the crate as a library: server, client, dispatcher, middleware |
//! | [`operations`] | sizing, health, disk space, backup, inspection, incidents |
//! | [`monitoring`] | status, metrics, dashboard, alerts |
//! | [`admin_page`] | the admin page: figures, users, live events |
//! | [`deployment`] | systemd, Debian package, container, Kubernetes |
//! | [`security`] | threat model, hardening, reporting |
//! | [`guarantees`] | G1 to G6: what is promised, and what is not |
//! | [`benchmarks`] | figures, each with its command and date |
//! | [`fault_testing`] | what the fault suites inject, and what they found |
//! | [`architecture`] | the path of a dispatch, the life of a connection, the store's files |
//! | [`contributing`] | tests, rules, where code belongs |

/// Links between chapters.
///
/// In the repository a chapter's own definitions at its end lead to files. Here these come first and take precedence.
macro_rules! links {
    () => {
        "[Getting started]: crate::guide::getting_started
[Migration]: crate::guide::migration
[Configuration]: crate::guide::configuration
[TLS and proxies]: crate::guide::tls_and_proxies
[Command line]: crate::guide::cli
[HTTP API]: crate::guide::http_api
[Resume protocol]: crate::guide::resume_protocol
[JavaScript client]: crate::guide::javascript_client
[Client protocol]: crate::guide::client_protocol
[Authentication]: crate::guide::authentication
[Webhooks]: crate::guide::webhooks
[Portals]: crate::guide::portals
[Redis protocol]: crate::guide::redis_protocol
[Cluster]: crate::guide::cluster
[Cluster failover]: crate::guide::cluster_failover
[Cluster with the original]: crate::guide::cluster_with_original
[Embedding]: crate::guide::embedding
[Operations]: crate::guide::operations
[Monitoring]: crate::guide::monitoring
[Admin page]: crate::guide::admin_page
[Deployment]: crate::guide::deployment
[Security]: crate::guide::security
[Guarantees]: crate::guide::guarantees
[Benchmarks]: crate::guide::benchmarks
[Fault testing]: crate::guide::fault_testing
[Architecture]: crate::guide::architecture
[Contributing]: crate::guide::contributing

"
    };
}

#[doc = links!()]
#[doc = include_str!("getting-started.md")]
pub mod getting_started {}

#[doc = links!()]
#[doc = include_str!("migration.md")]
pub mod migration {}

#[doc = links!()]
#[doc = include_str!("configuration.md")]
pub mod configuration {}

#[doc = links!()]
#[doc = include_str!("tls-and-proxies.md")]
pub mod tls_and_proxies {}

#[doc = links!()]
#[doc = include_str!("cli.md")]
pub mod cli {}

#[doc = links!()]
#[doc = include_str!("http-api.md")]
pub mod http_api {}

#[doc = links!()]
#[doc = include_str!("resume-protocol.md")]
pub mod resume_protocol {}

#[doc = links!()]
#[doc = include_str!("javascript-client.md")]
pub mod javascript_client {}

#[doc = links!()]
#[doc = include_str!("client-protocol.md")]
pub mod client_protocol {}

#[doc = links!()]
#[doc = include_str!("authentication.md")]
pub mod authentication {}

#[doc = links!()]
#[doc = include_str!("webhooks.md")]
pub mod webhooks {}

#[doc = links!()]
#[doc = include_str!("portals.md")]
pub mod portals {}

#[doc = links!()]
#[doc = include_str!("redis-protocol.md")]
pub mod redis_protocol {}

#[doc = links!()]
#[doc = include_str!("cluster.md")]
pub mod cluster {}

#[doc = links!()]
#[doc = include_str!("cluster-failover.md")]
pub mod cluster_failover {}

#[doc = links!()]
#[doc = include_str!("cluster-with-original.md")]
pub mod cluster_with_original {}

#[doc = links!()]
#[doc = include_str!("embedding.md")]
pub mod embedding {}

#[doc = links!()]
#[doc = include_str!("operations.md")]
pub mod operations {}

#[doc = links!()]
#[doc = include_str!("monitoring.md")]
pub mod monitoring {}

#[doc = links!()]
#[doc = include_str!("admin-page.md")]
pub mod admin_page {}

#[doc = links!()]
#[doc = include_str!("deployment.md")]
pub mod deployment {}

#[doc = links!()]
#[doc = include_str!("security.md")]
pub mod security {}

#[doc = links!()]
#[doc = include_str!("guarantees.md")]
pub mod guarantees {}

#[doc = links!()]
#[doc = include_str!("benchmarks.md")]
pub mod benchmarks {}

#[doc = links!()]
#[doc = include_str!("fault-testing.md")]
pub mod fault_testing {}

#[doc = links!()]
#[doc = include_str!("architecture.md")]
pub mod architecture {}

#[doc = links!()]
#[doc = include_str!("contributing.md")]
pub mod contributing {}
