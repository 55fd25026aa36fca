//! A vector that the server makes and keeps, a condition, and a sweep.
//!
//! `cargo run --example vectors [host:port]`

use actserve::{
    Client,
    v1::{
        ContrastingPrompts, Intervention, MakeSteeringVectorRequest, Probe, RunSweepRequest,
        SamplingParams, SweepAnswer, SweepPrompt, SweepVariant,
        make_steering_vector_request::Examples,
    },
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "localhost:50051".into());
    let client = Client::new(address)?;
    // [sample]
    let made = client
        .make_steering_vector(MakeSteeringVectorRequest {
            sites: vec!["resid_post.15".parse()?],
            examples: Some(Examples::Prompts(ContrastingPrompts {
                positive: vec!["I loved it, wonderful!".into()],
                negative: vec!["I hated it, terrible!".into()],
                ..Default::default()
            })),
            ..Default::default()
        })
        .await?;
    let joy = made.steering_vector.unwrap_or_default().name; // models/.../steeringVectors/...
    let mut add = Intervention::add(&["resid_post.15"], joy.as_str(), 2.0)?;
    // [/sample]
    // [sample]
    add.when = Some(Probe::linear("resid_post.8", joy.as_str())?.above(0.5));
    // [/sample]
    println!("{} acts where {:?}", joy, add.when);
    // [sample]
    let swept = client
        .run_sweep(RunSweepRequest {
            prompts: vec![SweepPrompt {
                prompt: Some("I think the movie was".into()),
                ..Default::default()
            }],
            variants: vec![SweepVariant {
                // The lists say how much, and where.
                interventions: vec![Intervention::add(&[], joy, None)?],
                coefficients: vec![0.0, 2.0, 4.0],
                sites: vec!["resid_post.10".parse()?, "resid_post.15".parse()?],
                ..Default::default()
            }],
            sampling: Some(SamplingParams { max_tokens: Some(20), ..Default::default() }),
            answers: vec![SweepAnswer { name: "great".into(), text: " great".into() }],
            ..Default::default()
        })
        .await?;
    for each in &swept.cells {
        let (cell, error) = (&each.cell, &each.error);
        let at = (cell.coefficient_index(), cell.site_index());
        match error {
            None => println!("{at:?} {:?} {:?}", cell.text, cell.answer_logprobs),
            Some(error) => println!("{at:?} {error}"),
        }
    }
    // [/sample]
    Ok(())
}
