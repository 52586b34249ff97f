//! The bench as a picture: a bar for each row, on a scale where each line is ten times the one before.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::Times;
use crate::baseline::Row;

/// Pixels of a row, of the names, and of the whole.
const ROW: u32 = 14;
const NAMES: u32 = 290;
const WIDTH: u32 = 1000;

const INSTRUCTIONS: RGBColor = RGBColor(70, 110, 170);
const BOUND: RGBColor = RGBColor(200, 40, 40);
const TIME: RGBColor = RGBColor(230, 150, 30);

/// Writes the picture.
pub(super) fn draw(path: &Path, rows: &[Row], times: &Times) -> Result<()> {
    let mut svg = String::new();
    picture(&mut svg, rows, times).map_err(|why| anyhow!("no chart: {why}"))?;
    std::fs::write(path, svg).map_err(|why| anyhow!("writing {}: {why}", path.display()))
}

fn picture(
    svg: &mut String,
    rows: &[Row],
    times: &Times,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let height = ROW * rows.len() as u32 + 70;
    let root = SVGBackend::with_string(svg, (WIDTH, height)).into_drawing_area();
    root.fill(&WHITE)?;
    let most =
        rows.iter().map(|row| row.counts.max as f64).chain(times.values().copied()).fold(10.0, f64::max)
            * 1.2;
    let mut chart = ChartBuilder::on(&root)
        .caption(
            "Instructions (bar), bound (red), time in instructions of a plain loop (orange)",
            ("sans-serif", 14),
        )
        .margin_right(20)
        .set_label_area_size(LabelAreaPosition::Left, NAMES)
        .set_label_area_size(LabelAreaPosition::Bottom, 25)
        .build_cartesian_2d((1.0..most).log_scale(), 0.0..rows.len() as f64)?;
    chart.configure_mesh().disable_y_mesh().y_labels(0).x_label_formatter(&|x| format!("{x:.0}")).draw()?;
    let name_style =
        ("sans-serif", 11).into_font().into_text_style(&root).pos(Pos::new(HPos::Right, VPos::Center));
    let (left, area) = (NAMES as i32 - 6, chart.plotting_area());
    for (number, row) in rows.iter().enumerate() {
        // The first row is at the top.
        let bottom = (rows.len() - 1 - number) as f64;
        let (low, high, middle) = (bottom + 0.15, bottom + 0.85, bottom + 0.5);
        let count = (row.counts.median as f64).max(1.0);
        area.draw(&Rectangle::new([(1.0, low), (count, high)], INSTRUCTIONS.filled()))?;
        if let Some(bound) = row.bound {
            let bound = bound as f64;
            area.draw(&PathElement::new([(bound, bottom), (bound, bottom + 1.0)], BOUND.stroke_width(2)))?;
        }
        if let Some(&time) = times.get(&row.name) {
            area.draw(&Circle::new((time.max(1.0), middle), 3, TIME.filled()))?;
        }
        let (_, y) = area.map_coordinate(&(1.0, middle));
        root.draw(&Text::new(
            format!("{} ({})", row.name, row.counts.median),
            (left, y),
            name_style.clone(),
        ))?;
    }
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::baseline::Counts;

    #[test]
    fn each_row_has_a_name_a_bar_and_what_else_is_known() {
        let row = |name: &str, median, bound| Row {
            name: name.into(),
            processors: 1,
            samples: 1024,
            counts: Counts { min: median, median, max: median },
            bound,
        };
        let rows = [row("a::b", 40, Some(50)), row("a::c", 0, None)];
        let mut svg = String::new();
        picture(&mut svg, &rows, &Times::from([("a::b".to_owned(), 120.0)])).expect("a picture");
        assert!(svg.contains("a::b (40)") && svg.contains("a::c (0)"), "{svg}");
        assert_eq!(svg.matches("<circle").count(), 1, "{svg}");
        assert_eq!(svg.matches("#C82828").count(), 1, "{svg}");
    }
}
