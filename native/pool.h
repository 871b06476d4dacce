/* Runs work on several threads: on the threads of the process's OpenMP runtime if there is one, else
 * on a small pool of our own. A second runtime would compete with the first for the cores. */
#ifndef GRADCLIP_POOL_H
#define GRADCLIP_POOL_H

/* Calls work(arg) on the calling thread and on up to `threads - 1` workers at once, and returns
 * when every call has returned. So `work` must distribute its own tasks, and must be correct with
 * any number of callers, also with one. */
void gradclip_parallel(void (*work)(void *), void *arg, int threads);

#endif
