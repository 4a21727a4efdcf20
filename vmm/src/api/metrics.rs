//! `GET /metrics`: a few numbers in Prometheus' text format (version 0.0.4), by hand.

use std::fmt::Write as _;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;

use crate::control::{Control, Shared};

/// Numbers for Prometheus.
#[utoipa::path(get, path = "/metrics", responses((status = 200, content_type = "text/plain")))]
pub(super) async fn page(State(control): State<Control>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text(control.shared()))
}

fn text(shared: &Shared) -> String {
    let config = shared.config();
    let counts = shared.operations().counts();
    let mut page = String::new();
    // an id holds nothing that a label value would have to escape
    let info = format!(
        "{{name=\"{}\",version=\"{}\",state=\"{}\"}}",
        shared.name(),
        env!("CARGO_PKG_VERSION"),
        shared.state().name()
    );
    number(&mut page, "ckvmm_vm_info", "gauge", "The VM's name and state.", &info, 1);
    number(
        &mut page,
        "ckvmm_uptime_seconds",
        "gauge",
        "How long this process has run.",
        "",
        shared.uptime_us() / 1_000_000,
    );
    number(&mut page, "ckvmm_vcpus", "gauge", "Virtual CPUs.", "", config.vcpus.into());
    number(&mut page, "ckvmm_memory_bytes", "gauge", "Guest RAM.", "", config.memory.0);
    number(&mut page, "ckvmm_checkpoints_total", "counter", "Checkpoints made.", "", counts.done);
    number(&mut page, "ckvmm_checkpoints_failed_total", "counter", "Checkpoints that failed.", "", counts.failed);
    let running = u64::from(shared.operations().is_running());
    number(&mut page, "ckvmm_checkpoint_running", "gauge", "Whether a checkpoint is being made.", "", running);
    if let Some(last) = counts.last {
        let mut last_one = |name, help, n| number(&mut page, name, "gauge", help, "", n);
        last_one(
            "ckvmm_checkpoint_last_pause_us",
            "How long the guest stood still for the last checkpoint.",
            last.pause_us,
        );
        last_one("ckvmm_checkpoint_last_duration_us", "How long the last checkpoint took in all.", last.duration_us);
        last_one("ckvmm_checkpoint_last_written_bytes", "RAM that the last checkpoint wrote.", last.written_bytes);
    }
    for (name, help, value) in shared.counters() {
        number(&mut page, name, "counter", help, "", value);
    }
    page
}

fn number(page: &mut String, name: &str, kind: &str, help: &str, labels: &str, value: u64) {
    writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name}{labels} {value}").expect("a String takes all");
}
