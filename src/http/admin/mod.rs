//! Serves the admin page at `/admin`, and the API for it under `/admin/v1`.
//!
//! The page calls the same handlers as backends do under `/v1`. A session guards them in place of an API key.
//!
//! - `sessions`: who may log in, and the sessions · `guard`: checks the session of a request
//! - `login`: `/admin/session` · `page`: files of the page
//!
//! # Protection
//!
//! - The cookie of a session is `HttpOnly` and `SameSite=Strict`. Every request under `/admin/v1` also needs the session's
//!   token in a header, which pages of other origins can neither read nor send.
//! - The content security policy permits nothing but the files of the page itself.

mod guard;
mod login;
mod page;
mod sessions;

use std::sync::Arc;

use axum::{Router, middleware, routing::get};

use super::{Api, error::ApiError};
pub use sessions::Admin;

/// Builds the routes of the page, with the API `v1` under `/admin`. Without a page there is no route.
pub(super) fn router(api: &Arc<Api>, v1: Router<Arc<Api>>) -> Router<Arc<Api>> {
    if api.admin.is_off() {
        return Router::new();
    }
    let guarded = v1.route_layer(middleware::from_fn_with_state(api.clone(), guard::require_session));
    Router::new()
        .route("/admin", get(page::index))
        .route("/admin/", get(page::redirect))
        .route("/admin/{file}", get(page::file))
        .route("/admin/session", get(login::show).post(login::open).delete(login::close))
        .method_not_allowed_fallback(|| async { ApiError::MethodNotAllowed })
        .nest("/admin", guarded)
        .route_layer(middleware::from_fn_with_state(api.clone(), guard::require_this_machine))
        .route_layer(middleware::map_response(page::protect))
}
