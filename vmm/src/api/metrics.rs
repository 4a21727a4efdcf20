//! `GET /metrics`: a few numbers in Prometheus' text format (version 0.0.4), by hand.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;

use super::types::{LinkInfo, NetworkInfo, NicInfo, VmInfo};
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
    let vm = VmInfo::of(shared);
    cards(&mut page, &vm.nics);
    if let Some(network) = &vm.network {
        links(&mut page, network);
    }
    page
}

fn cards(page: &mut String, nics: &BTreeMap<String, NicInfo>) {
    let mut counter = |name, help, value: fn(&NicInfo) -> u64| {
        counters(page, name, help, nics.iter().map(|(id, nic)| (format!("{{nic=\"{id}\"}}"), value(nic))));
    };
    counter("ckvmm_nic_received_frames_total", "Frames given to the guest.", |nic| nic.received_frames);
    counter("ckvmm_nic_received_bytes_total", "Their bytes.", |nic| nic.received_bytes);
    counter("ckvmm_nic_receive_drops_total", "Frames that it could not be given.", |nic| nic.receive_drops);
    counter("ckvmm_nic_transmitted_frames_total", "Frames of the guest.", |nic| nic.transmitted_frames);
    counter("ckvmm_nic_transmitted_bytes_total", "Their bytes.", |nic| nic.transmitted_bytes);
    counter("ckvmm_nic_transmit_drops_total", "Frames that were not sent.", |nic| nic.transmit_drops);
}

fn links(page: &mut String, network: &NetworkInfo) {
    number(page, "ckvmm_network_colour", "gauge", "The last cut that is behind the VM.", "", network.colour);
    let mut counter = |name, help, value: fn(&LinkInfo) -> u64| {
        let of = |link: &LinkInfo| (format!("{{node=\"{}\"}}", link.node), value(link));
        counters(page, name, help, network.links.iter().map(of));
    };
    counter("ckvmm_link_sent_frames_total", "Frames sent to that node.", |link| link.sent_frames);
    counter("ckvmm_link_sent_bytes_total", "Their bytes.", |link| link.sent_bytes);
    counter("ckvmm_link_received_frames_total", "Frames that came from that node.", |link| link.received_frames);
    counter("ckvmm_link_received_bytes_total", "Their bytes.", |link| link.received_bytes);
}

/// A counter with a line for each label.
fn counters(page: &mut String, name: &str, help: &str, values: impl Iterator<Item = (String, u64)>) {
    let mut values = values.peekable();
    if values.peek().is_some() {
        head(page, name, "counter", help);
    }
    values.for_each(|(labels, value)| line(page, name, &labels, value));
}

fn number(page: &mut String, name: &str, kind: &str, help: &str, labels: &str, value: u64) {
    head(page, name, kind, help);
    line(page, name, labels, value);
}

fn head(page: &mut String, name: &str, kind: &str, help: &str) {
    writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}").expect("a String takes all");
}

fn line(page: &mut String, name: &str, labels: &str, value: u64) {
    writeln!(page, "{name}{labels} {value}").expect("a String takes all");
}
