//! The kernel's own image: brings the machine up, says so, and idles.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod image {
    use arch::exit::Outcome;
    use kernel::boot::{Image, facts};
    use kernel::ke::event::{Event, EventKind};
    use kernel::ke::wait;
    use kernel::mm::zeroing;
    use sync::irql::{Irql, Passive};

    static IMAGE: Image = Image { main };

    kernel::image!(IMAGE);

    fn main(at: &mut Irql<Passive>) -> Outcome {
        kernel::info!("idle; bring-up took {} KiB", facts().early_bytes >> 10);
        if zeroing::start(at).is_err() {
            kernel::warn!("no memory for the zero-page thread");
        }
        // Nobody ends it.
        static NEVER: Event = Event::new(EventKind::Notification, false);
        loop {
            let _ = wait::for_single(&NEVER, None, at);
        }
    }
}

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("this is a kernel image: build it for x86_64-unknown-none, or type `make run`");
}
