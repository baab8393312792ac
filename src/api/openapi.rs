//! The OpenAPI document, made from the handlers; `docs/openapi.json` is its
//! committed copy.

use std::collections::BTreeSet;

use axum::{Json, extract::State};
use utoipa::openapi::{
    Components, Info, License, OpenApi, Ref, RefOr, Response, ResponseBuilder, Responses,
    content::ContentBuilder,
    extensions::ExtensionsBuilder,
    header::HeaderBuilder,
    path::Operation,
    schema::{Object, Schema, Type},
    security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
};

use super::{Api, problem};
use crate::identity::Right;

/// Errors that every guarded route may give, and what they mean.
const ERRORS: [(&str, &str); 10] = [
    ("400", "The request says something that cannot be meant."),
    ("401", "Nobody is told who asks, or it is not believed."),
    ("403", "Whoever asks lacks the right that the detail names, or speaks for another tenant."),
    ("404", "There is no such thing."),
    ("408", "The request took too long to arrive."),
    ("413", "The body is longer than is taken."),
    ("415", "The content type or the encoding of the body is not taken."),
    ("429", "The tenant's requests of this minute are used up."),
    ("500", "The daemon failed at the request."),
    ("503", "Not now: the daemon is full, or something it needs is away."),
];

/// Errors that any route may give.
const OF_ALL: [&str; 2] = ["500", "503"];

/// What the document says of the whole.
pub(super) fn outline() -> OpenApi {
    let mut info = Info::new("Thalweg", env!("CARGO_PKG_VERSION"));
    info.description = Some(
        "Live streams in, a crash-safe log, an index that is current to the second. Errors are RFC 9457 problem \
         details with a stable `code`."
            .to_owned(),
    );
    info.license = Some(License::new("Apache-2.0"));
    let mut components = Components::new();
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("An API key of `thalweg keys`, or a token of the identity provider."))
        .build();
    components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
    let problem = <problem::Body as utoipa::PartialSchema>::schema();
    components.schemas.insert("Problem".to_owned(), problem);
    for (status, meaning) in ERRORS {
        components.responses.insert(format!("Error{status}"), error(status, meaning).into());
    }
    let mut document = OpenApi::new(info, utoipa::openapi::Paths::new());
    document.components = Some(components);
    document
}

/// Completes what the handlers do not say one by one: the errors, and, where
/// whoever asks needs `right`, that a credential may be asked for.
pub(super) fn complete(mut document: OpenApi, right: Option<Right>) -> OpenApi {
    for (path, item) in &mut document.paths.paths {
        let operations = [&mut item.get, &mut item.post, &mut item.put, &mut item.patch, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            for (status, _) in ERRORS.iter().filter(|(status, _)| right.is_some() || OF_ALL.contains(status))
            {
                describe(&mut operation.responses, status);
            }
            if let Some(right) = right {
                let bearer = SecurityRequirement::new("bearer", Vec::<String>::new());
                // Where `[auth]` is off, none is asked for.
                operation.security = Some(vec![SecurityRequirement::default(), bearer]);
                operation.extensions = Some(ExtensionsBuilder::new().add("x-right", right.name()).build());
            }
            tag(operation, path);
        }
    }
    document
}

/// Lets what is part of another schema have that one's keys beside its own:
/// all of both would otherwise be fulfilled by nothing.
pub(super) fn open_parts(document: &mut OpenApi) {
    let Some(components) = &mut document.components else { return };
    let mut parts = BTreeSet::new();
    for schema in components.schemas.values() {
        let RefOr::T(Schema::OneOf(choice)) = schema else { continue };
        let all = choice.items.iter().filter_map(|item| match item {
            RefOr::T(Schema::AllOf(all)) => Some(&all.items),
            _ => None,
        });
        let references = all.flatten().filter_map(|item| match item {
            RefOr::Ref(reference) => reference.ref_location.rsplit('/').next(),
            RefOr::T(_) => None,
        });
        parts.extend(references.map(str::to_owned));
    }
    for name in parts {
        if let Some(RefOr::T(Schema::Object(part))) = components.schemas.get_mut(&name) {
            part.additional_properties = None;
        }
    }
}

/// Refers to the error `status`, unless the handler has its own words for it.
fn describe(responses: &mut Responses, status: &str) {
    let error = || RefOr::Ref(Ref::from_response_name(format!("Error{status}")));
    responses.responses.entry(status.to_owned()).or_insert_with(error);
}

/// The error `status`, for all routes that may give it.
fn error(status: &str, meaning: &str) -> Response {
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    let response = ResponseBuilder::new().description(meaning).content("application/problem+json", content);
    if !matches!(status, "429" | "503") {
        return response.build();
    }
    let seconds = HeaderBuilder::new()
        .schema(Some(Object::with_type(Type::Integer)))
        .description(Some("Seconds after which to try again."))
        .build();
    response.header("Retry-After", seconds).build()
}

/// Groups operations by what they are about.
fn tag(operation: &mut Operation, path: &str) {
    let name = match path.strip_prefix("/api/v1/") {
        Some(rest) => rest.split('/').next().unwrap_or(rest),
        None => "health",
    };
    operation.tags = Some(vec![name.to_owned()]);
}

/// This document
#[utoipa::path(get, path = "/api/v1/openapi.json", responses((status = 200, body = serde_json::Value)))]
pub(super) async fn document(State(api): State<Api>) -> Json<OpenApi> {
    Json(api.0.document.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    const COPY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json");

    /// `THALWEG_BLESS=1 cargo nextest run --lib openapi` writes it anew.
    #[test]
    fn the_committed_document_is_the_one_that_is_served() {
        let document = serde_json::to_string_pretty(&Api::document()).unwrap() + "\n";
        if std::env::var_os("THALWEG_BLESS").is_some() {
            std::fs::write(COPY, &document).unwrap();
        }
        let committed = std::fs::read_to_string(COPY).unwrap_or_default();
        assert!(committed == document, "docs/openapi.json differs; write it anew as the comment here says");
    }

    #[test]
    fn every_guarded_route_says_its_right_and_all_its_refusals() {
        let document = serde_json::to_value(Api::document()).unwrap();
        let paths = document["paths"].as_object().unwrap();
        for (path, item) in paths.iter().filter(|(path, _)| path.starts_with("/api/v1/")) {
            if path.ends_with("openapi.json") {
                continue;
            }
            for (method, operation) in item.as_object().unwrap() {
                assert!(operation["x-right"].is_string(), "{method} {path}");
                for status in ["401", "403", "429", "503"] {
                    assert!(operation["responses"][status].is_object(), "{method} {path} {status}");
                }
            }
        }
        assert!(paths.len() > 10);
    }
}
