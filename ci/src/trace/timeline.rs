//! The model as a page for a browser, without a network: a picture (SVG) that the wheel zooms and the mouse drags.
//!
//! A row a processor, with its handlers and its level, then a row a thread; arrows lead from a wake to where the thread runs.

use std::collections::HashMap;
use std::fmt::Write as _;

use super::model::{Model, Row, Span};

/// Fits into a window of 1400.
const WIDTH: f64 = 1360.0;
const LEFT: f64 = 130.0;
const ROW: f64 = 18.0;
const LEVELS: f64 = 34.0;
/// More threads than this make a picture that nobody reads; those that ran longest are shown.
const MOST_THREADS: usize = 40;

/// The page.
pub(crate) fn html(model: &Model) -> String {
    let mut picture = Picture::new(model);
    picture.draw();
    let shown = picture.shown_threads().len();
    let (height, body) = (picture.height, picture.body);
    let (from, to) = model.times;
    format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>Kirql: timeline</title>\n<style>{STYLE}</style>\n\
         <p>{:.6} s to {:.6} s, {} processors, {} of {} threads, those that ran longest. The wheel zooms, dragging moves, a double \
         click shows all; resting on a bar tells its name and length.<br>For each processor: the thread it runs, below it interrupt \
         handlers and DPCs (red), and its IRQL as a line, 0 to 15. For each thread: when it ran. An arrow leads from a wake to where \
         the woken thread runs; where there are many they fade until you zoom in.</p>\n\
         <svg id=\"t\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         xmlns=\"http://www.w3.org/2000/svg\">\n\
         <defs><marker id=\"a\" viewBox=\"0 0 6 6\" refX=\"5\" refY=\"3\" markerWidth=\"5\" markerHeight=\"5\" \
         orient=\"auto\"><path style=\"fill-opacity:var(--o)\" d=\"M0 0L6 3L0 6z\"/></marker>\
         <clipPath id=\"c\"><rect x=\"{LEFT}\" y=\"0\" width=\"{}\" height=\"{height}\"/></clipPath></defs>\n\
         {body}</svg>\n<script>{SCRIPT}</script></html>\n",
        from as f64 / 1e9,
        to as f64 / 1e9,
        model.processors,
        shown,
        model.threads.iter().filter(|name| !name.starts_with("idle")).count(),
        WIDTH - LEFT,
    )
}

const STYLE: &str = "body{font:13px sans-serif;margin:8px;color:#222}text{font:11px sans-serif}\
    .h{fill:#c44}.l{fill:none;stroke:#357;vector-effect:non-scaling-stroke}.g{stroke:#ddd}\
    .w{stroke:#000;stroke-opacity:var(--o);fill:none;vector-effect:non-scaling-stroke;marker-end:url(#a)}\
    .n{pointer-events:none}rect:hover{stroke:#000;vector-effect:non-scaling-stroke}";

/// Time is scaled inside the group `z` only, so the names at the left stay.
const SCRIPT: &str = "const s=document.getElementById('t'),z=document.getElementById('z'),L=130,W=s.width.baseVal.value-L,N=z.querySelectorAll('.w').length;let k=1,x=0,d=null;\
    function f(){s.style.setProperty('--o',Math.min(.6,Math.max(.04,40*k/N)));x=Math.min(0,Math.max(x,W*(1-k)));z.setAttribute('transform',`translate(${L+x},0) scale(${k},1)`);\
    for(const t of z.querySelectorAll('text')){t.setAttribute('transform',`scale(${1/k},1)`);\
    t.setAttribute('x',t.dataset.x*k+3);t.style.display=t.dataset.w*k>t.textContent.length*6?'':'none'}}\
    s.addEventListener('wheel',e=>{e.preventDefault();const p=e.offsetX-L-x,q=Math.exp(-e.deltaY/400),n=Math.min(1e5,Math.max(1,k*q));\
    x-=p*(n/k-1);k=n;f()},{passive:false});s.addEventListener('mousedown',e=>d=e.clientX-x);\
    addEventListener('mousemove',e=>{if(d!==null){x=e.clientX-d;f()}});addEventListener('mouseup',()=>d=null);\
    s.addEventListener('dblclick',()=>{k=1;x=0;f()});f();";

struct Picture<'a> {
    model: &'a Model,
    places: HashMap<Row, f64>,
    height: f64,
    body: String,
}

impl<'a> Picture<'a> {
    fn new(model: &'a Model) -> Self {
        Self { model, places: HashMap::new(), height: 4.0, body: String::new() }
    }

    /// From the left edge of the times.
    fn x(&self, time: u64) -> f64 {
        let (from, to) = self.model.times;
        (time - from) as f64 * (WIDTH - LEFT) / (to - from).max(1) as f64
    }

    fn label(&mut self, row: Row, name: &str, height: f64) {
        let y = self.height;
        self.places.insert(row, y);
        let _ = writeln!(self.body, "<text x=\"2\" y=\"{:.1}\">{}</text>", y + 12.0, escaped(name));
        let _ = writeln!(
            self.body,
            "<line class=\"g\" x1=\"0\" x2=\"{WIDTH}\" y1=\"{0:.1}\" y2=\"{0:.1}\"/>",
            y + height
        );
        self.height += height + 2.0;
    }

    fn draw(&mut self) {
        for number in 0..self.model.processors {
            self.label(Row::Processor(number), &format!("cpu {number}"), ROW);
            self.label(Row::Handlers(number), "   handlers, irql", ROW + LEVELS);
        }
        for (thread, name) in self.shown_threads() {
            self.label(Row::Thread(thread), &name, ROW);
        }
        self.body.push_str("<g clip-path=\"url(#c)\"><g id=\"z\" transform=\"translate(130,0)\">\n");
        let model = self.model;
        model.spans.iter().for_each(|span| self.span(span));
        (0..model.processors).for_each(|number| self.levels(number));
        model.spans.iter().for_each(|span| self.arrow(span));
        self.body.push_str("</g></g>\n");
    }

    /// Those that ran longest, in the order in which they were met.
    fn shown_threads(&self) -> Vec<(usize, String)> {
        let mut ran = vec![0; self.model.threads.len()];
        for span in &self.model.spans {
            if let Row::Thread(thread) = span.row {
                ran[thread] += span.end - span.start;
            }
        }
        // That a processor was idle stands in its own row.
        let mut threads: Vec<usize> =
            (0..ran.len()).filter(|&thread| !self.model.threads[thread].starts_with("idle")).collect();
        threads.sort_by_key(|&thread| std::cmp::Reverse(ran[thread]));
        threads.truncate(MOST_THREADS);
        threads.sort_unstable();
        threads.into_iter().map(|thread| (thread, self.model.threads[thread].clone())).collect()
    }

    fn span(&mut self, span: &Span) {
        let Some(&y) = self.places.get(&span.row) else { return };
        let (x, width) = (self.x(span.start), (self.x(span.end) - self.x(span.start)).max(0.02));
        let name = escaped(&span.name);
        let colour = match span.row {
            Row::Handlers(_) => "class=\"h\" fill-opacity=\".6\"".to_owned(),
            Row::Processor(_) => format!("fill=\"{}\"", colour(&span.name)),
            Row::Thread(thread) => format!("fill=\"{}\"", colour(&self.model.threads[thread])),
        };
        let _ = writeln!(
            self.body,
            "<rect x=\"{x:.3}\" y=\"{y:.1}\" width=\"{width:.3}\" height=\"{ROW}\" {colour}>\
             <title>{name}: {:.3} us</title></rect>",
            (span.end - span.start) as f64 / 1e3
        );
        if matches!(span.row, Row::Processor(_)) {
            let _ = writeln!(
                self.body,
                "<text class=\"n\" data-x=\"{x:.3}\" data-w=\"{width:.3}\" y=\"{:.1}\">{name}</text>",
                y + 13.0
            );
        }
    }

    /// The level as a line of steps: PASSIVE at the bottom.
    fn levels(&mut self, number: usize) {
        let Some(&y) = self.places.get(&Row::Handlers(number)) else { return };
        let bottom = y + ROW + LEVELS - 1.0;
        let mut path = String::new();
        for &(time, level) in &self.model.levels[number] {
            let height = bottom - f64::from(level) * (LEVELS - 2.0) / 15.0;
            let x = self.x(time);
            let _ = match path.is_empty() {
                true => write!(path, "M{x:.3} {height:.1}"),
                false => write!(path, "H{x:.3}V{height:.1}"),
            };
        }
        let _ = writeln!(self.body, "<path class=\"l\" d=\"{path}\"/>");
    }

    fn arrow(&mut self, span: &Span) {
        let Some(arrow) = span.woken_by.map(|arrow| &self.model.arrows[arrow]) else { return };
        let (Row::Thread(_), Some(&to)) = (span.row, self.places.get(&span.row)) else { return };
        let Some(&from) = self.places.get(&Row::Processor(arrow.processor)) else { return };
        let _ = writeln!(
            self.body,
            "<path class=\"w\" d=\"M{:.3} {:.1}L{:.3} {:.1}\"/>",
            self.x(arrow.time),
            from + ROW,
            self.x(span.start),
            to
        );
    }
}

/// The same for the same name.
fn colour(name: &str) -> String {
    let hash =
        name.bytes().fold(0x811C_9DC5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    if name.starts_with("idle") { "#eee".into() } else { format!("hsl({},55%,72%)", hash % 360) }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::model::tests::example;
    use super::*;

    #[test]
    fn the_page_has_every_span_level_and_arrow() {
        let model = example();
        let page = html(&model);
        let count = |text: &str| page.matches(text).count();
        assert_eq!(count("<rect x=") - 1, model.spans.len(), "one is the clip's");
        assert_eq!(count("class=\"l\""), 2);
        assert_eq!(count("class=\"w\""), 1);
        assert!(page.contains("bee 7") && page.contains("vector 0xd1: 0.050 us"));
        assert!(!page.contains("NaN"));
    }

    #[test]
    fn names_cannot_end_the_picture() {
        assert_eq!(escaped("</svg>&\""), "&lt;/svg>&amp;&quot;");
    }
}
