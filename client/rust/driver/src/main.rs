//! The driver of the conformance cases: does what each line of its input asks, with the public API,
//! and answers with a line. `tests/conformance/README.md` says what they are.

mod answers;
mod building;
mod calls;
mod features;
mod graphs;
mod heads;
mod messages;
mod warnings;

use std::{
    error::Error as StdError,
    fs,
    io::{BufRead, Write},
    time::Duration,
};

use actserve::{
    Array, Client,
    tonic::transport::{Certificate, ClientTlsConfig, Identity},
    v1,
};
use opentelemetry::trace::{
    FutureExt, SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use answers::{array, error, floats};
use messages::Messages;
use warnings::Warnings;

type Result<T> = std::result::Result<T, Box<dyn StdError + Send + Sync>>;

/// One line of input.
#[derive(Deserialize)]
struct Question {
    id: u64,
    operation: String,
    #[serde(default)]
    client: ClientOptions,
    #[serde(default)]
    text: String,
    #[serde(default)]
    tensor: Value,
    #[serde(default)]
    shape: Vec<usize>,
    #[serde(default)]
    data: String,
    #[serde(default)]
    method: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    request: Value,
    take: Option<usize>,
    cancel_after: Option<usize>,
    cancel_after_s: Option<f64>,
    #[serde(default)]
    count: usize,
    #[serde(default)]
    cancel_every: usize,
    #[serde(default)]
    seconds: f64,
    #[serde(default)]
    concurrency: usize,
    #[serde(default)]
    sites: Vec<String>,
    #[serde(default)]
    vector: Value,
    coefficient: Option<f32>,
    when: Option<building::Condition>,
    #[serde(default)]
    site: String,
    #[serde(default)]
    matrices: Vec<features::Matrix>,
    #[serde(default)]
    dictionary: String,
    #[serde(default)]
    features: Vec<u32>,
    #[serde(default)]
    k: usize,
    top: Option<u32>,
    #[serde(default)]
    positions: String,
    #[serde(default)]
    values: features::Numbers,
    #[serde(default)]
    additions: features::Numbers,
    #[serde(default)]
    factors: features::Numbers,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClientOptions {
    #[serde(default)]
    targets: Vec<String>,
    token: Option<String>,
    #[serde(default)]
    allow_plaintext_token: bool,
    tls: Option<TlsFiles>,
    timeout_s: Option<f64>,
    model: Option<String>,
    #[serde(default)]
    metadata: Map<String, Value>,
    traceparent: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TlsFiles {
    ca_file: Option<String>,
    cert_file: Option<String>,
    key_file: Option<String>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let messages = Messages::new()?;
    let warnings = Warnings::subscribe()?;
    for line in std::io::stdin().lock().lines() {
        let question: Question = serde_json::from_str(&line?)?;
        let context = match &question.client.traceparent {
            Some(parent) => {
                opentelemetry::Context::new().with_remote_span_context(span_context(parent)?)
            }
            None => opentelemetry::Context::new(),
        };
        let outcome = answer(&question, &messages).with_context(context).await;
        let mut answer = match outcome {
            Ok(result) => result,
            // Anything but an error of the client is a mistake in a case, or here.
            Err(failure) => json!({"error": error(&*failure.downcast::<actserve::Error>()?)}),
        };
        answer["id"] = question.id.into();
        answer["warnings"] = warnings.take().into();
        let mut output = std::io::stdout().lock();
        writeln!(output, "{answer}")?;
        output.flush()?;
    }
    Ok(())
}

async fn answer(question: &Question, messages: &Messages) -> Result<Value> {
    let result = match question.operation.as_str() {
        "parse_site" => messages.json_of("Site", &question.text.parse::<v1::Site>()?)?,
        "parse_positions" => {
            messages.json_of("PositionSelector", &question.text.parse::<v1::PositionSelector>()?)?
        }
        "decode_tensor" => {
            let tensor: v1::Tensor = messages.message_of("Tensor", &question.tensor)?;
            array(&Array::try_from(&tensor)?)
        }
        "encode_tensor" => {
            let array = Array::new(question.shape.clone(), floats(&question.data)?)?;
            messages.json_of("Tensor", &v1::Tensor::from(&array))?
        }
        "build_add" => building::add(question, messages)?,
        "build_features" => features::changed(question, messages)?,
        "build_feature_readout" => features::readout(question, messages)?,
        "upload" => features::upload(client(&question.client)?, question).await?,
        "graph" => calls::graph(client(&question.client)?, question, messages).await?,
        "logit_effects" => features::effects(client(&question.client)?, question).await?,
        "unary" => calls::unary(client(&question.client)?, question, messages).await?,
        "list" => calls::list(client(&question.client)?, question, messages).await?,
        // These may have an error beside their result, or in its place.
        "stream" => return calls::stream(client(&question.client)?, question, messages).await,
        "collect" => return calls::collect(client(&question.client)?, question, messages).await,
        "watch" => return calls::watch(client(&question.client)?, question, messages).await,
        "wait" => {
            let monitor = client(&question.client)?.wait_for_monitor(&question.name).await?;
            json!({"name": monitor.name})
        }
        "streams" => calls::streams(question, messages).await?,
        "measure" => calls::measure(client(&question.client)?, question, messages).await?,
        other => return Err(format!("there is no operation {other}").into()),
    };
    Ok(json!({"result": result}))
}

fn client(options: &ClientOptions) -> Result<Client> {
    let (first, others) = options.targets.split_first().ok_or("a client needs a target")?;
    let mut builder = Client::builder(first).allow_plaintext_token(options.allow_plaintext_token);
    for target in others {
        builder = builder.target(target);
    }
    if let Some(token) = &options.token {
        builder = builder.token(token);
    }
    if let Some(files) = &options.tls {
        let mut tls = match &files.ca_file {
            Some(path) => {
                ClientTlsConfig::new().ca_certificate(Certificate::from_pem(fs::read(path)?))
            }
            None => ClientTlsConfig::new().with_native_roots(),
        };
        if let (Some(certificate), Some(key)) = (&files.cert_file, &files.key_file) {
            tls = tls.identity(Identity::from_pem(fs::read(certificate)?, fs::read(key)?));
        }
        builder = builder.tls(tls);
    }
    if let Some(seconds) = options.timeout_s {
        builder = builder.timeout(Duration::from_secs_f64(seconds));
    }
    if let Some(model) = &options.model {
        builder = builder.model(model);
    }
    for (name, value) in &options.metadata {
        builder = builder.header(name, value.as_str().ok_or("a header is no text")?);
    }
    Ok(builder.build()?)
}

fn span_context(parent: &str) -> Result<SpanContext> {
    let parts: Vec<_> = parent.split('-').collect();
    let [_, trace, span, flags] = parts[..] else {
        return Err(format!("{parent:?} is no traceparent").into());
    };
    Ok(SpanContext::new(
        TraceId::from_hex(trace)?,
        SpanId::from_hex(span)?,
        TraceFlags::new(u8::from_str_radix(flags, 16)?),
        true,
        TraceState::default(),
    ))
}
