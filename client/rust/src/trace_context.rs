//! The current OpenTelemetry context, as the W3C writes it in headers.

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::{Context, trace::TraceContextExt};

pub(crate) fn add(headers: &mut HeaderMap) {
    let context = Context::current();
    let span = context.span().span_context().clone();
    if !span.is_valid() {
        return;
    }
    let parent =
        format!("00-{}-{}-{:02x}", span.trace_id(), span.span_id(), span.trace_flags().to_u8());
    for (name, value) in [("traceparent", parent), ("tracestate", span.trace_state().header())] {
        if let Ok(value) = HeaderValue::try_from(value)
            && !value.is_empty()
        {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
}
