//! Watches what a model writes by a probe, and tells where its score is high.
//!
//! `cargo run --example monitor [host:port]`

use actserve::{
    Client,
    v1::{
        Alert, AlertFilter, AlertLevel, CreateMonitorRequest, DeleteAlertsRequest,
        DeleteMonitorRequest, FetchActivationsRequest, FetchItem, GenerateRequest, Monitor,
        MonitorLevel, MonitorWatch, Probe, Readout, SamplingParams, ScoreDetail,
        WatchAlertsRequest,
    },
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "localhost:50051".into());
    let client = Client::new(address)?;
    let site = "resid_post.15";
    let fetched = client
        .fetch_activations(FetchActivationsRequest {
            items: vec![
                FetchItem::of("I loved it, wonderful!"),
                FetchItem::of("I hated it, terrible!"),
            ],
            readouts: vec![Readout::rows("acts", &[site], "last")?],
            ..Default::default()
        })
        .await?;
    let liked = fetched.item(0)?.readouts.rows("acts", site)?.values.row(0);
    let hated = fetched.item(1)?.readouts.rows("acts", site)?.values.row(0);
    let mood: Vec<f32> = liked.iter().zip(hated).map(|(liked, hated)| liked - hated).collect();
    let middle = liked.iter().zip(hated).map(|(liked, hated)| f64::from(liked + hated) / 2.0);
    let halfway: f64 =
        mood.iter().zip(middle).map(|(mood, middle)| f64::from(*mood) * middle).sum();

    // [sample]
    let created = client
        .create_monitor(CreateMonitorRequest {
            monitor_id: "mood".into(),
            monitor: Some(Monitor {
                probes: vec![Probe::linear(site, mood)?],
                lower: Some(MonitorLevel {
                    threshold: Some(halfway as f32),
                    flag: true,
                    ..Default::default()
                }),
                watch: Some(MonitorWatch { named_only: true, ..Default::default() }),
                ..Default::default()
            }),
            ..Default::default()
        })
        .await?;
    let name = created.monitor.unwrap_or_default().name; // models/.../monitors/mood
    // [/sample]
    // [sample]
    let generated = client
        .generate(GenerateRequest {
            prompt: Some("I loved it, wonderful!".into()),
            sampling: Some(SamplingParams {
                temperature: Some(0.0),
                max_tokens: Some(20),
                ..Default::default()
            }),
            monitors: vec![name.clone()],
            score_detail: ScoreDetail::Sample.into(),
            ..Default::default()
        })
        .await?;
    let sample = &generated.samples[0];
    println!("generated: {}", serde_json::to_string(&sample.text)?);
    for score in &sample.monitor_scores {
        println!("highest: {:.2} at token {}", score.highest_score, score.highest_position);
    }
    for alert in &sample.alerts {
        println!("told: {}", told(alert)); // Those of levels with `flag`.
    }

    let filter = AlertFilter { monitors: vec![name.clone()], ..Default::default() };
    let mut watched = client.watch_alerts(WatchAlertsRequest {
        filter: Some(filter.clone()),
        from_oldest: true,
        ..Default::default()
    });
    // It goes on for as long as it is read, and ends when it is dropped.
    if let Some(watched) = watched.try_next().await? {
        println!("watched: {}", told(&watched.alert));
    }
    // [/sample]
    client
        .delete_alerts(DeleteAlertsRequest { filter: Some(filter), ..Default::default() })
        .await?;
    client.delete_monitor(DeleteMonitorRequest { name, ..Default::default() }).await?;
    Ok(())
}

fn told(alert: &Alert) -> String {
    let level = if alert.level() == AlertLevel::Lower { "lower" } else { "upper" };
    format!("{level}, {:.2} at token {}", alert.score, alert.position)
}
