//! Pictures of figures: SVG, drawn here, readable on white and on dark.

use std::{error::Error, ops::Range, path::Path};

use plotters::prelude::*;

/// Width and height of a picture.
const SIZE: (u32, u32) = (900, 420);
const LABELS: (&str, u32) = ("sans-serif", 15);
/// Part of a group's width that its bars take.
const FILLED: f64 = 0.8;
/// One for each series, told apart by most who see few colours.
const COLOURS: [RGBColor; 6] = [
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0x56, 0xb4, 0xe9),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0x99, 0x99, 0x99),
    RGBColor(0x00, 0x9e, 0x73),
];

/// Milliseconds, in groups of bars.
pub(crate) struct Bars {
    pub(crate) title: &'static str,
    /// What a bar of each colour is.
    pub(crate) series: Vec<&'static str>,
    /// A group's name and its bars, in the order of the series; absent: no bar.
    pub(crate) groups: Vec<(String, Vec<Option<f64>>)>,
}

/// Points joined by lines.
pub(crate) struct Lines {
    pub(crate) title: &'static str,
    pub(crate) below: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) lines: Vec<(String, Vec<(f64, f64)>)>,
}

pub(crate) type Drawn = Result<(), Box<dyn Error>>;

impl Bars {
    pub(crate) fn draw(&self, file: &Path) -> Drawn {
        let area = SVGBackend::new(file, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let y = range(self.groups.iter().flat_map(|(_, bars)| bars.iter().flatten().copied()));
        let bottom = y.start;
        // Room for one more group, where the legend stands.
        let width = self.groups.len() + 1;
        let mut chart = ChartBuilder::on(&area)
            .caption(self.title, ("sans-serif", 22))
            .margin(12)
            .x_label_area_size(32)
            .y_label_area_size(64)
            .build_cartesian_2d(0.0..width as f64, y.log_scale())?;
        // A group's name stands below its middle; the axis has a mark there and nowhere else.
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_labels(width * 2 + 1)
            .x_label_formatter(&|x| self.group_at(*x))
            .label_style(LABELS)
            .y_desc("ms")
            .y_label_formatter(&|y| format!("{y}"))
            .draw()?;
        let wide = FILLED / self.series.len() as f64;
        for (number, name) in self.series.iter().enumerate() {
            let colour = COLOURS[number % COLOURS.len()];
            let bars = self.groups.iter().enumerate().filter_map(|(group, (_, bars))| {
                let left = group as f64 + (1.0 - FILLED) / 2.0 + number as f64 * wide;
                let height = (*bars.get(number)?)?.max(bottom);
                Some(Rectangle::new([(left, bottom), (left + wide, height)], colour.filled()))
            });
            chart.draw_series(bars)?.label(*name).legend(move |(x, y)| legend(x, y, colour));
        }
        chart
            .configure_series_labels()
            .label_font(LABELS)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK)
            .draw()?;
        Ok(area.present()?)
    }

    fn group_at(&self, x: f64) -> String {
        let is_middle = (x.fract() - 0.5).abs() < 0.01;
        let group = self.groups.get(x as usize).filter(|_| is_middle);
        group.map_or_else(String::new, |(name, _)| name.clone())
    }
}

impl Lines {
    pub(crate) fn draw(&self, file: &Path) -> Drawn {
        let area = SVGBackend::new(file, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let points = || self.lines.iter().flat_map(|(_, points)| points.iter());
        let y = range(points().map(|(_, y)| *y));
        let bottom = y.start;
        let first = points().map(|(x, _)| *x).fold(1.0, f64::min);
        let last = points().map(|(x, _)| *x).fold(2.0, f64::max);
        let mut chart = ChartBuilder::on(&area)
            .caption(self.title, ("sans-serif", 22))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(64)
            .build_cartesian_2d(first..last, y.log_scale())?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_label_formatter(&|x| format!("{x}"))
            .x_desc(self.below)
            .label_style(LABELS)
            .y_desc(self.unit)
            .y_label_formatter(&|y| format!("{y}"))
            .draw()?;
        for (number, (name, points)) in self.lines.iter().enumerate() {
            let colour = COLOURS[number % COLOURS.len()];
            let points = points.iter().map(|(x, y)| (*x, y.max(bottom)));
            chart
                .draw_series(LineSeries::new(points, colour.stroke_width(2)))?
                .label(name)
                .legend(move |(x, y)| legend(x, y, colour));
        }
        chart
            .configure_series_labels()
            .label_font(LABELS)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK)
            .draw()?;
        Ok(area.present()?)
    }
}

fn legend(x: i32, y: i32, colour: RGBColor) -> Rectangle<(i32, i32)> {
    Rectangle::new([(x, y - 5), (x + 14, y + 5)], colour.filled())
}

/// Whole powers of ten around all figures; what is no millisecond's tenth counts as one, work that was gained too.
fn range(figures: impl Iterator<Item = f64>) -> Range<f64> {
    let figures: Vec<f64> = figures.map(|ms| ms.max(0.1)).collect();
    let least = figures.iter().copied().fold(1.0, f64::min);
    let most = figures.iter().copied().fold(10.0, f64::max);
    10f64.powf(least.log10().floor())..10f64.powf(most.log10().ceil())
}
