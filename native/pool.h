/* Work on several threads: those of the OpenMP runtime if the process has one, else a small pool of
 * our own. A second runtime would compete with the first. */
#ifndef GRADCLIP_POOL_H
#define GRADCLIP_POOL_H

/* Calls work(arg) on the calling thread and on up to `threads - 1` workers at once, and returns
 * when every call has returned. So `work` must share out its own tasks, and must be correct with
 * any number of callers, one included. */
void gradclip_parallel(void (*work)(void *), void *arg, int threads);

#endif
