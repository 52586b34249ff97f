//! The interface of `x86_64::aside`, where an ordinary call does.

/// `function(argument)`: the path of an `extern "sysv64" fn(&T)`, and a `&T`.
///
/// # Safety
/// There is nothing to it here.
#[macro_export]
macro_rules! call_aside {
    ($function:path, $argument:expr) => {
        $crate::aside::call($function, $argument)
    };
}

/// For [`call_aside`] alone.
///
/// # Safety
/// None is needed; on the machine it is.
pub unsafe fn call<T>(function: extern "sysv64" fn(&T), argument: &T) {
    function(argument);
}
