/* gcc.exe and g++.exe for a Python for Windows under Wine: they run the cross compilers of the system below, which Wine
 * can start. Those do not see the pipes of Windows, so what they say goes through a file. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <windows.h>

typedef LONG(WINAPI* Spawn)(char* const arguments[], int wait);

/* Slashes, and without drive Z:, which is the root of the system below. */
static char* plain(char* argument) {
    char* to = argument;
    for (const char* from = argument; *from != '\0'; ++from) {
        if ((from[0] == 'Z' || from[0] == 'z') && from[1] == ':' && (from[2] == '\\' || from[2] == '/')) from += 2;
        *to++ = *from == '\\' ? '/' : *from;
    }
    *to = '\0';
    return argument;
}

int main(int argc, char** argv) {
    static char said[64], command[128], text[65536];
    const char* slash = strrchr(argv[0], '\\');
    const char* compiler = strstr(slash != NULL ? slash : argv[0], "g++") != NULL ? "g++" : "gcc";
    char** arguments = calloc((size_t)argc + 4, sizeof *arguments);
    if (arguments == NULL) return 2;
    snprintf(said, sizeof said, "/tmp/wine-compiler-%lu", GetCurrentProcessId());
    snprintf(command, sizeof command, "exec x86_64-w64-mingw32-%s \"$@\" > %s 2>&1", compiler, said);
    arguments[0] = "/bin/sh", arguments[1] = "-c", arguments[2] = command, arguments[3] = "sh";
    for (int i = 1; i < argc; ++i) arguments[i + 3] = plain(argv[i]);
    const Spawn spawn = (Spawn)(void*)GetProcAddress(GetModuleHandleA("ntdll.dll"), "__wine_unix_spawnvp");
    if (spawn == NULL) return fputs("this is not Wine\n", stderr), 2;
    const int status = spawn(arguments, 1);
    FILE* const file = fopen(said, "rb");
    if (file != NULL) {
        for (size_t n; (n = fread(text, 1, sizeof text, file)) > 0;) fwrite(text, 1, n, status == 0 ? stdout : stderr);
        fclose(file);
        remove(said);
    }
    return status;
}
