//go:build libvirt_dlopen

package libvirt

// The binding loads libvirt, sixty shared libraries in all, while the program
// starts: it sets libvirt's error handler before main. That is three quarters of
// the time of a command that has no guest to ask for. Here the linker is told to
// lead the binding's two calls of the dynamic loader by these, which put the
// loading off until a function of libvirt's is needed for its work, and set the
// handler then.

/*
#cgo LDFLAGS: -Wl,--wrap=dlopen -Wl,--wrap=dlsym
#include <dlfcn.h>
#include <pthread.h>
#include <stddef.h>
#include <string.h>

typedef void (*errorFunc)(void *userData, void *error);
typedef void (*setErrorFunc)(void *userData, errorFunc handler);

void *__real_dlopen(const char *name, int mode);
void *__real_dlsym(void *handle, const char *symbol);

static char later; // its address stands for the library that is not loaded yet
static int laterMode;
static void *library;
static pthread_once_t loading = PTHREAD_ONCE_INIT;

static void *userData;
static errorFunc handler;
static void *noAuth; // what libvirt asks for on a terminal, which kami never has it do

static void keepHandler(void *data, errorFunc fn)
{
    userData = data;
    handler = fn;
}

static void load(void)
{
    setErrorFunc set;

    library = __real_dlopen("libvirt.so.0", laterMode);
    if (library == NULL)
        return;
    set = (setErrorFunc)__real_dlsym(library, "virSetErrorFunc");
    if (set != NULL)
        set(userData, handler);
}

void *__wrap_dlopen(const char *name, int mode)
{
    if (name == NULL || strcmp(name, "libvirt.so.0") != 0)
        return __real_dlopen(name, mode);
    laterMode = mode;
    return &later;
}

// The caller takes what dlerror says for what has failed here.
void *__wrap_dlsym(void *handle, const char *symbol)
{
    if (handle != &later)
        return __real_dlsym(handle, symbol);
    dlerror();
    if (strcmp(symbol, "virSetErrorFunc") == 0)
        return keepHandler;
    if (strcmp(symbol, "virConnectAuthPtrDefault") == 0)
        return &noAuth;
    pthread_once(&loading, load);
    if (library == NULL)
        return __real_dlopen("libvirt.so.0", laterMode); // NULL, and dlerror says why
    return __real_dlsym(library, symbol);
}
*/
import "C"
